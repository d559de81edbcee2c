"""Experts without their original weights: these are freed, and made anew of the packed ones.

A released module keeps its parameters' names, shapes and dtypes, on device "meta". What the packed
copy holds to the bit (format None: the weights' own numbers) is given back exactly, in
`state_dict` too; of a quantised copy only its own numbers can be had, and only when asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from .hf_modules import INTERFACE, weight_names
from .torch_experts import OWN_FORMATS, Fused, Runner, Staged
from .torch_run import forget, keep_only, watch_again


@dataclass(slots=True)
class _Released:
    """What a module was, and how it is watched over."""

    format: str | None
    runner: Runner
    grads: dict[str, bool]
    hooks: list[Any]


_released: WeakKeyDictionary[torch.nn.Module, _Released] = WeakKeyDictionary()


def is_interface(module: Any) -> bool:
    """True for experts modules of transformers' experts interface."""
    return all(hasattr(module, name) for name in ("is_transposed", "has_gate", "down_proj"))


def release_module(module: Any, format: str | None) -> int:
    """Frees one module's weights; the bytes they had. 0 where they are float8 or float4 with
    scales, or released already."""
    names = weight_names(module)
    tensors = [getattr(module, name) for name in names]
    if module in _released or any(tensor.dtype not in OWN_FORMATS for tensor in tensors):
        return 0
    if any(getattr(module, f"{name}_scale_inv", None) is not None for name in names):
        return 0
    runner = keep_only(module, INTERFACE, INTERFACE.tensors(module), format)
    grads = {}
    freed = 0
    for name, tensor in zip(names, tensors, strict=True):
        grads[name] = tensor.requires_grad
        freed += tensor.numel() * tensor.element_size()
        empty = torch.empty_like(tensor, device="meta")
        setattr(module, name, torch.nn.Parameter(empty, requires_grad=False))
    hooks = [
        module.register_state_dict_post_hook(_fill),
        module.register_load_state_dict_pre_hook(_refuse),
    ]
    _released[module] = _Released(format, runner, grads, hooks)
    return freed


def restore_module(module: Any, rounded: bool) -> int:
    """Gives a module its weights back; their bytes, 0 where it has them.

    RuntimeError for a quantised copy without `rounded`.
    """
    found = _released.get(module)
    if found is None:
        return 0
    if found.format is not None and not rounded:
        raise RuntimeError(_lost(module, found.format))
    values = _values(module, found)
    del _released[module]
    for hook in found.hooks:
        hook.remove()
    total = 0
    for name, value in values.items():
        setattr(module, name, torch.nn.Parameter(value, requires_grad=found.grads[name]))
        total += value.numel() * value.element_size()
    watch_again(module, INTERFACE.tensors(module))
    if found.format is not None:
        forget(module)  # the numbers are others now, and would be packed once more
    return total


def released_format(module: torch.nn.Module) -> tuple[str | None] | None:
    """(the format that a released module is kept in,); None for one with its weights."""
    found = _released.get(module)
    return None if found is None else (found.format,)


def _lost(module: torch.nn.Module, format: str | None) -> str:
    return (
        f"[moekit] the weights of {type(module).__name__} were released and are kept as {format}; "
        "loading the model again, or restore(model, rounded=True), is required"
    )


def _values(module: Any, found: _Released) -> dict[str, torch.Tensor]:
    """The weights by name, as they were laid out."""
    first, down = weight_names(module)
    out: dict[str, torch.Tensor] = {}
    for name, part in ((first, "first"), (down, "down")):
        like = getattr(module, name)
        value = torch.empty(like.shape, dtype=like.dtype)
        for expert in range(len(value)):
            matrix = torch.from_numpy(_matrix(found.runner, part, expert, module))
            value[expert] = (matrix.T if module.is_transposed else matrix).to(like.dtype)
        out[name] = value
    return out


def _matrix(runner: Runner, part: str, expert: int, module: Any) -> Any:
    """float32 [N, K] of an expert, as `TorchExperts.matrix` gives it."""
    if isinstance(runner, Staged):
        return (runner.first if part == "first" else runner.down).unpack_expert(expert)
    assert isinstance(runner, Fused)
    experts = runner.experts
    if part == "down":
        return experts.down.unpack_expert(expert)
    if experts.gate is None:
        return experts.up.unpack_expert(expert)
    both = np.empty((2 * experts.inter, experts.hidden), np.float32)
    gate, up = runner.halves
    both[gate], both[up] = experts.gate.unpack_expert(expert), experts.up.unpack_expert(expert)
    return both


def _fill(module: Any, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """A state dictionary holds the weights, not what stands for them."""
    found = _released.get(module)
    if found is None:
        raise RuntimeError(
            f"[moekit] this {type(module).__name__} is a copy of one whose weights were released, "
            "and has none; restore(model) is required before it is copied"
        )
    if found.format is not None:
        raise RuntimeError(_lost(module, found.format))
    for name, value in _values(module, found).items():
        state[prefix + name] = value


def _refuse(module: Any, *_: Any) -> None:
    raise RuntimeError(
        f"[moekit] the weights of {type(module).__name__} were released; restore(model) is "
        "required before others are loaded"
    )
