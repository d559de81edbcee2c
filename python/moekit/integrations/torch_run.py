"""Runs a module's experts: packed once, kept while nothing changes, with gradients where asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from moekit import _core

from .torch_experts import (
    Functions,
    Fused,
    NotRunnable,
    Runner,
    TorchExperts,
    Watched,
    assignment_of,
    check_tensor,
    pack,
)

_ACTIVATIONS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Experts:
    """How a kind of module is read, and what it computes by itself.

    Each is called with the module. ``tensors``: all that its packed copy is made from, cheap to ask
    for. ``eager(module, hidden, ids, weights)``: its own forward pass, for gradients; where it
    ``takes_tensors``, these come last and stand for the module's.
    """

    tensors: Callable[[Any], Sequence[torch.Tensor]]
    source: Callable[[Any], TorchExperts]
    functions: Callable[[Any], Functions]
    eager: Callable[..., torch.Tensor]
    on_input: bool = False
    takes_tensors: bool = False


class _Packed:
    """What stands packed for one module: a runner for each format."""

    __slots__ = ("__weakref__", "lock", "released", "runners", "watched")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.watched: list[Watched] = []
        self.runners: dict[str | None, Runner] = {}
        # The one runner is all that is left of the weights.
        self.released = False

    def current(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these are the tensors that stand packed."""
        if len(tensors) != len(self.watched):
            return False
        for watched, tensor in zip(self.watched, tensors, strict=True):
            if not watched.same(tensor):
                return False
        return True


_modules: WeakKeyDictionary[torch.nn.Module, _Packed] = WeakKeyDictionary()
_modules_lock = threading.Lock()


def runner_of(
    module: torch.nn.Module, kind: Experts, tensors: Sequence[torch.Tensor], format: str | None
) -> Runner:
    """The packed experts of ``module``; packs them where they are new or have changed."""
    packed = _modules.get(module)
    if packed is None:
        with _modules_lock:
            packed = _modules.setdefault(module, _Packed())
    with packed.lock:
        if packed.released:
            if format not in packed.runners:
                raise NotRunnable(
                    f"[moekit] the weights of {type(module).__name__} were released; "
                    "restore(model) is required for another format"
                )
            return packed.runners[format]
        if not packed.current(tensors):
            packed.runners.clear()
            for index, tensor in enumerate(tensors):
                check_tensor(tensor, f"weight {index} of {type(module).__name__}")
            packed.watched = [Watched(tensor, len(tensors)) for tensor in tensors]
        runner = packed.runners.get(format)
        if runner is None:
            runner = packed.runners[format] = pack(
                kind.source(module), kind.functions(module), format
            )
        return runner


def keep_only(
    module: torch.nn.Module, kind: Experts, tensors: Sequence[torch.Tensor], format: str | None
) -> Runner:
    """The packed experts in ``format``, packed where they are not; they stand for the weights from
    here on, and no other format does."""
    runner = runner_of(module, kind, tensors, format)
    packed = _modules[module]
    with packed.lock:
        packed.runners = {format: runner}
        packed.watched, packed.released = [], True
    return runner


def watch_again(module: torch.nn.Module, tensors: Sequence[torch.Tensor]) -> None:
    """The packed experts hold what ``tensors`` do, and are packed anew when these change."""
    packed = _modules[module]
    with packed.lock:
        packed.watched = [Watched(tensor, len(tensors)) for tensor in tensors]
        packed.released = False


def forget(module: torch.nn.Module) -> int:
    """Frees the packed copies of ``module`` and all modules in it; how many bytes they had.

    RuntimeError where a copy is all that is left of the weights.
    """
    with _modules_lock:
        if any(packed.released for m in module.modules() if (packed := _modules.get(m))):
            raise RuntimeError(
                f"[forget] weights of {type(module).__name__} were released; restore(model) is "
                "required before the packed ones go"
            )
        dropped = [_modules.pop(inner, None) for inner in module.modules()]
    return sum(runner.nbytes for packed in dropped if packed for runner in packed.runners.values())


def _run(
    module: torch.nn.Module,
    kind: Experts,
    format: str | None,
    hidden: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """``hidden`` [..., H] through the experts that ``ids`` [T, K] name, times ``weights`` [T, K].

    The result has the shape and dtype of ``hidden``. Raises NotRunnable for what lies on another
    device or in a dtype that the core does not read, ValueError for an id that is no expert's.
    """
    if not hidden.is_cpu:
        if hidden.is_meta:
            return torch.empty_like(hidden)
        raise NotRunnable(f"[moekit] hidden_states are on device {hidden.device}; cpu is required")
    if hidden.dtype not in _ACTIVATIONS:
        raise NotRunnable(
            f"[moekit] hidden_states are {hidden.dtype}; float32, bfloat16 or float16 is required"
        )
    if torch._C._is_tracing():  # the core leaves no trace: what is recorded would be wrong
        raise NotRunnable(
            "[moekit] torch.jit.trace cannot record what the core computes; "
            'set_experts_implementation("eager") is required before it'
        )
    tensors = kind.tensors(module)
    if torch.is_grad_enabled():
        known = set(map(id, tensors))
        others = [p for p in module.parameters() if id(p) not in known]
        if any(tensor.requires_grad for tensor in (hidden, weights, *tensors, *others)):
            inputs = (module, kind, format, hidden, ids, weights, *tensors, *others)
            return _WithGradient.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]
    return _forward(module, kind, format, hidden, ids, weights, tensors)


def _forward(
    module: torch.nn.Module,
    kind: Experts,
    format: str | None,
    hidden: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    tensors: Sequence[torch.Tensor],
) -> torch.Tensor:
    runner = runner_of(module, kind, tensors, format)
    if isinstance(runner, Fused) and weights.dtype in _ACTIVATIONS:
        return runner.on_tensors(hidden, ids, weights, kind.on_input)
    # A view where activations are float32 and contiguous already.
    x = hidden.detach().reshape(-1, hidden.shape[-1]).float().contiguous().numpy()
    assignment = assignment_of(ids, weights, runner.count, kind.on_input)
    with _core.ThreadLimit(torch.get_num_threads()):
        out = runner(x, assignment, lambda: kind.functions(module))
    return torch.from_numpy(out).to(hidden.dtype).view(hidden.shape)


#: `_run`, which torch.compile calls as it is.
run: Callable[
    [torch.nn.Module, Experts, str | None, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor
] = torch.compiler.disable(_run)  # type: ignore[no-untyped-call]


class _WithGradient(torch.autograd.Function):
    """Our forward pass; the gradient is that of the module's own, computed anew when asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        module: torch.nn.Module,
        kind: Experts,
        format: str | None,
        hidden: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        *tensors: torch.Tensor,
    ) -> torch.Tensor:
        own = kind.tensors(module)
        ctx.module, ctx.kind, ctx.format, ctx.count = module, kind, format, len(own)
        # Under autocast the module's own products take 16 bits, and operands of different dtypes.
        ctx.cast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        ctx.save_for_backward(hidden, ids, weights, *tensors)
        return _forward(module, kind, format, hidden, ids, weights, own)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        if ctx.format is not None:
            raise RuntimeError(
                f"[moekit_{ctx.format}] quantised experts have no gradient; "
                'set_experts_implementation("moekit") or "eager" is required for training'
            )
        hidden, ids, weights, *tensors = ctx.saved_tensors
        if any(tensor.device.type == "meta" for tensor in tensors):
            raise RuntimeError(
                "[moekit] released weights have no gradient; restore(model) is required"
            )
        # Aliases, where this gradient ends: the graph that made the tensors goes on from there, and
        # is not walked here. With create_graph they are part of it.
        again = torch.is_grad_enabled()
        enabled, dtype = ctx.cast
        with torch.enable_grad(), torch.autocast("cpu", dtype, enabled, cache_enabled=False):
            hidden, weights = _alias(hidden, again), _alias(weights, again)
            if ctx.kind.takes_tensors:
                # Those of the forward pass: a parametrization that computed them may be gone.
                own = [_alias(tensor, again) for tensor in tensors[: ctx.count]]
                tensors[: ctx.count] = own
                out = ctx.kind.eager(ctx.module, hidden, ids, weights, own)
            elif all(tensor.is_leaf for tensor in tensors):
                out = ctx.kind.eager(ctx.module, hidden, ids, weights)
            else:
                raise RuntimeError(
                    f"[moekit] weights of {type(ctx.module).__name__} are computed; "
                    'set_experts_implementation("eager") is required for their gradient'
                )
            wanted = [t for t in (hidden, weights, *tensors) if t.requires_grad]
            found = torch.autograd.grad(
                out, wanted, grads[0], allow_unused=True, create_graph=again
            )
        given = dict(zip(map(id, wanted), found, strict=True))
        by_tensor = [given.get(id(tensor)) for tensor in (hidden, weights, *tensors)]
        return None, None, None, by_tensor[0], None, by_tensor[1], *by_tensor[2:]


def _alias(tensor: torch.Tensor, again: bool) -> torch.Tensor:
    """The same numbers, in the tensor's graph (`again`) or outside of any."""
    if again and tensor.requires_grad:
        return tensor.view_as(tensor)
    return tensor.detach().requires_grad_(tensor.requires_grad)
