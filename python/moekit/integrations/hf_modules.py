"""The experts modules of transformers' experts interface, and their FP8 counterparts, as weights.

The layout is `use_experts_implementation`'s: `gate_up_proj` [E, 2F, H] (or `up_proj` [E, F, H]
without a gate) and `down_proj` [E, H, F], the last two dimensions swapped where `is_transposed`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moekit.checkpoint import Piece, hf_fp8, hf_quant
from moekit.ops.arrays import Array, to_numpy

from .torch_experts import OWN_FORMATS, Functions, NotRunnable, TorchExperts
from .torch_run import Experts


class _StandIn:
    """A module with other tensors in the place of its own."""

    def __init__(self, module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        self.__dict__.update(tensors, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)


def _eager(
    module: torch.nn.Module,
    hidden: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    tensors: Sequence[torch.Tensor] | None = None,
) -> torch.Tensor:
    # What the interface's decorator has wrapped, for FP8 once for each module.
    forward = inspect.unwrap(type(module).forward)
    itself: Any = module
    if tensors is not None:
        itself = _StandIn(module, dict(zip(_named(module), tensors, strict=True)))
    result: torch.Tensor = forward(itself, hidden, ids, weights)
    return result


_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def weight_names(module: Any) -> tuple[str, str]:
    """What the module calls its first weight, gate and up, and its second."""
    return ("gate_up_proj" if getattr(module, "has_gate", True) else "up_proj"), "down_proj"


def _tensors(module: Any) -> Sequence[torch.Tensor]:
    return list(_named(module).values())


def _named(module: Any) -> dict[str, torch.Tensor]:
    # At every token: to ask a module for what it lacks takes as long as all the rest, it raises.
    parameters = module._parameters
    has_bias = getattr(module, "has_bias", False)
    found = {}
    for name in weight_names(module):
        weight = parameters.get(name)
        if weight is None:  # computed by a parametrization, or a buffer
            weight = getattr(module, name)
        found[name] = weight
        bias = getattr(module, f"{name}_bias") if has_bias else None
        if bias is not None:
            found[f"{name}_bias"] = bias
        scaled = weight.dtype not in OWN_FORMATS
        scale = getattr(module, f"{name}_scale_inv", None) if scaled else None
        if scale is not None:
            found[f"{name}_scale_inv"] = scale
    return found


def _source(module: torch.nn.Module) -> TorchExperts:
    kind = type(module).__name__
    first_name, down_name = weight_names(module)
    first, down = getattr(module, first_name), getattr(module, down_name)
    if first.ndim != 3 or down.ndim != 3:
        raise NotRunnable(
            f"[moekit] {first_name} and {down_name} of {kind} have shapes {list(first.shape)} and "
            f"{list(down.shape)}; three dimensions are required"
        )
    gated = getattr(module, "has_gate", True)
    stored = {"first": _Stored(module, first_name), "down": _Stored(module, down_name)}
    count, rows, hidden = stored["first"].shape
    inter = rows // 2 if gated else rows
    if stored["down"].shape != (count, hidden, inter):
        raise NotRunnable(
            f"[moekit] {first_name} and {down_name} of {kind} have shapes {list(first.shape)} and "
            f"{list(down.shape)}; they do not fit together"
        )
    has_bias = getattr(module, "has_bias", False)
    return TorchExperts(
        count=count,
        inter=inter,
        hidden=hidden,
        format=stored["first"].format,
        gated=gated,
        matrix=lambda part, expert: stored[part].matrix(expert),
        first_bias=getattr(module, first_name + "_bias") if has_bias else None,
        down_bias=getattr(module, down_name + "_bias") if has_bias else None,
        down_format=stored["down"].format,
        blocks=lambda part, expert: stored[part].blocks(expert),
    )


def _functions(module: Any) -> Functions:
    gated = getattr(module, "has_gate", True)
    # Parameters that are no weights of the experts belong to what stands between them.
    weights = {id(tensor) for tensor in _tensors(module)}
    return Functions(
        module._apply_gate if gated else module.act_fn,
        module.post_expert_norm if getattr(module, "has_post_expert_norm", False) else None,
        all(id(parameter) in weights for parameter in module.parameters()),
    )


class _Stored:
    """One of a module's two weights: expert by expert [N, K], in a dtype that the core packs."""

    def __init__(self, module: torch.nn.Module, name: str) -> None:
        self.weight: torch.Tensor = getattr(module, name).detach()
        scale = getattr(module, name + "_scale_inv", None)
        self.scale: torch.Tensor | None = None if scale is None else scale.detach()
        self.block = tuple(getattr(module, "block_size", None) or ())
        self.transposed: bool = getattr(module, "is_transposed", False)
        self.format = self._format(name)
        self.shape = self._shape()
        if self.format == "q8_0" and self.blocks(0) is not None:
            self.format = "fp8"

    def _format(self, name: str) -> str:
        dtype = self.weight.dtype
        if dtype in OWN_FORMATS and self.scale is None:
            return OWN_FORMATS[dtype]
        if dtype in _FP8 and self.scale is not None:
            return "q8_0"  # or fp8, where runs of 128 columns share a scale
        if dtype == torch.int8 and self.scale is not None:
            return "mxfp4"
        found = f"{dtype}" + ("" if self.scale is None else " with scales")
        raise NotRunnable(
            f"[moekit] {name} is {found}; float32, bfloat16, float16, or float8 or packed float4 "
            "with scales is required"
        )

    def _shape(self) -> tuple[int, int, int]:
        count, rows, cols = self.weight.shape
        if self.transposed:
            rows, cols = cols, rows
        return count, rows, 2 * cols if self.weight.dtype == torch.int8 else cols

    def matrix(self, expert: int) -> torch.Tensor:
        """[N, K] of one expert; float32 where it is dequantised."""
        weight = self.weight[expert]
        if self.scale is None:
            return weight.T if self.transposed else weight
        values, scale = to_numpy(weight, "moekit", "weight"), self._scales(expert)
        if weight.dtype == torch.int8:
            return torch.from_numpy(hf_quant.dequantize_fp4(values, scale))
        halves = self._by_grid(values, scale)
        return torch.from_numpy(np.concatenate([hf_quant.dequantize_fp8(*half) for half in halves]))

    def blocks(self, expert: int) -> npt.NDArray[np.uint8] | None:
        """The bytes of the core's fp8 of an expert [N, K]; None where they would round."""
        weight = self.weight[expert]
        if self.scale is None or weight.dtype != torch.float8_e4m3fn or self.transposed:
            return None
        found = []
        for values, scale, block in self._by_grid(
            to_numpy(weight, "moekit", "weight"), self._scales(expert)
        ):
            grid = hf_quant.scale_grid(hf_quant.scale_values(scale), values.shape, block)[0]
            one = values.shape if grid.size == 1 else block
            found.append(hf_fp8.piece_blocks(values.view(np.uint8), grid, one, Piece("")))
        whole = [part for part in found if part is not None]
        return np.concatenate(whole) if len(whole) == len(found) else None

    def _by_grid(self, values: Array, scale: Array) -> list[tuple[Array, Array, tuple[int, int]]]:
        """(codes, scales, block): two where gate and up have blocks of their own, cut at edges."""
        rows, cols = values.shape
        high, wide = self.block or (rows, cols)
        if scale.size > 1 and len(scale) != -(-rows // high):
            pairs = zip(np.split(values, 2), np.split(scale, 2), strict=True)
            return [(w, s, (high, wide)) for w, s in pairs]
        return [(values, scale, (high, wide))]

    def _scales(self, expert: int) -> Array:
        assert self.scale is not None
        scale = self.scale[expert]
        if scale.dtype in (torch.float32, torch.bfloat16, torch.float16):
            return scale.float().numpy()
        return scale.view(torch.uint8).numpy()  # E8M0


INTERFACE = Experts(_tensors, _source, _functions, _eager, takes_tensors=True)
