"""What a module's gate computes, found by calling it.

The name of an activation does not say what a model does with it: many Hugging Face families clamp
the gate or the other half, add one, cap softly or interleave the two halves, in an `_apply_gate` of
their own. So the function itself is asked, on numbers that reach into every branch, and only what
agrees with a function of the core everywhere is run by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

Function = Callable[[torch.Tensor], torch.Tensor]

# Activations of the core, as the same formulas in torch.
_FUNCTIONS: dict[str, Function] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
    "identity": lambda x: x,
}
_OAI_SLOPE = 1.702
_VALUES = 8192
# Two float32 formulas of one function differ by a few units in the last place of their factors.
_TOLERANCE = 2e-6


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate that the core has: its activation, its limit, and how the halves are stored."""

    activation: str
    limit: float = 0.0
    interleaved: bool = False

    def __call__(self, gate_up: torch.Tensor) -> torch.Tensor:
        """The core's definition (see :class:`moekit.ops.Experts`) in torch: [n, 2F] to [n, F]."""
        if self.interleaved:
            gate, up = gate_up[..., ::2], gate_up[..., 1::2]
        else:
            gate, up = gate_up.chunk(2, dim=-1)
        if self.limit > 0:
            gate = gate.clamp(max=self.limit)
            up = up.clamp(min=-self.limit, max=self.limit)
        if self.activation == "swiglu_oai":
            return gate * torch.sigmoid(_OAI_SLOPE * gate) * (up + 1)
        return _FUNCTIONS[self.activation](gate) * up


def recognise_gate(apply_gate: Function, inter: int) -> Gate | None:
    """The gate of the core that equals ``apply_gate`` ([n, 2F] to [n, F]); None if none does."""
    rows = _numbers(2 * inter)
    given = apply_gate(rows.clone())
    if given.shape != (len(rows), inter):
        return None
    for interleaved in (False, True):
        limit = _limit(apply_gate, inter, interleaved)
        size = _factors(rows, interleaved)
        for bound in (limit, 0.0) if limit > 0 else (0.0,):
            for activation in (*_FUNCTIONS, "swiglu_oai"):
                gate = Gate(activation, bound, interleaved)
                if _agree(given, gate(rows), size):
                    return gate
    return None


def recognise_activation(act_fn: Function, inter: int) -> str | None:
    """The same for experts without a gate: the activation that equals ``act_fn``."""
    rows = _numbers(inter)
    given = act_fn(rows.clone())
    if given.shape != rows.shape:
        return None
    size = rows.abs().double() * rows.abs().clamp(min=1)
    return next((name for name, f in _FUNCTIONS.items() if _agree(given, f(rows), size)), None)


def _numbers(width: int) -> torch.Tensor:
    """Rows of numbers: ordinary ones, tiny and huge ones of both signs, and zeros."""
    # A generator of its own: a forward pass does not move the caller's random numbers.
    random = torch.Generator().manual_seed(20)
    shape = (max(4, -(-_VALUES // width)), width)
    ordinary = 3 * torch.randn(shape, generator=random)
    exponents = torch.rand(shape, generator=random) * 8 - 4
    sign = torch.randint(0, 2, shape, generator=random) * 2 - 1
    kind = torch.rand(shape, generator=random)
    spread = sign * 10**exponents
    return torch.where(kind < 0.5, ordinary, torch.where(kind < 0.98, spread, 0.0))


def _limit(apply_gate: Function, inter: int, interleaved: bool) -> float:
    """Where the second half is cut off, read from its effect; 0 where nothing is cut."""
    halves = torch.zeros(3, 2, inter)
    halves[:, 0] = 1.0
    halves[1, 1] = 1.0
    halves[2, 1] = 1e6
    rows = halves.transpose(1, 2).reshape(3, -1) if interleaved else halves.reshape(3, -1)
    none, one, most = apply_gate(rows.contiguous())[:, 0].double().tolist()
    if one == none or not most > none:  # NaN as well
        return 0.0
    limit = float((most - none) / (one - none))
    if not 0 < limit < 5e5:
        return 0.0
    # Read through a float32 product; a limit is a round number.
    return round(limit, 3) if abs(limit - round(limit, 3)) < 1e-5 * limit else limit


def _factors(rows: torch.Tensor, interleaved: bool) -> torch.Tensor:
    halves = rows.abs().double()
    if interleaved:
        return halves[:, ::2] * (halves[:, 1::2] + 1)
    gate, up = halves.chunk(2, dim=-1)
    return gate * (up + 1)


def _agree(given: torch.Tensor, ours: torch.Tensor, size: torch.Tensor) -> bool:
    return bool(((given.double() - ours.double()).abs() <= _TOLERANCE * size).all())
