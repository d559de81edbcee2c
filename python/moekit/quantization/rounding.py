"""Rounding one matrix: to nearest, or by GPTQ where there are inputs to weigh the errors with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .. import ops
from ..nn.types import Floats
from ..ops import PackedWeight
from .layerwise import Doubles

METHODS = ("rtn", "gptq", "awq")
# Damping is raised tenfold up to here before a matrix is left to round to nearest.
_MOST_DAMP = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """How matrices are rounded.

    `act_order`: GPTQ rounds the columns with the largest inputs first, under scales found
    beforehand; otherwise from left to right, with scales found for the corrected weights. `damp`
    is GPTQ's λ over the mean of the Hessian's diagonal. Experts that saw fewer than `min_tokens`
    tokens are rounded by their weights alone. `all_experts` calibrates every expert with all
    tokens.
    """

    method: str = "rtn"
    act_order: bool = True
    damp: float = 0.01
    min_tokens: int = 32
    all_experts: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(
                f"[quantize] method {self.method!r}; one of {', '.join(METHODS)} is required"
            )
        if not 0 < self.damp <= _MOST_DAMP:
            raise ValueError(f"[quantize] damp {self.damp}; a number above 0, at most 1")
        if self.min_tokens < 0:
            raise ValueError(f"[quantize] min_tokens {self.min_tokens}; 0 or more is required")


@dataclass(frozen=True, slots=True)
class Rounded:
    """How a matrix was rounded, and ‖(Ŵ - W) x‖² / ‖W x‖² over its inputs; without inputs, over
    the unit vectors: ‖Ŵ - W‖² / ‖W‖²."""

    method: str
    error: float


def one_or_all(formats: Sequence[str]) -> str | list[str]:
    """A single name where all are the same."""
    return formats[0] if len(set(formats)) == 1 else list(formats)


def output_power(weight: Floats, hessian: Doubles | None) -> float:
    """Sum over inputs of ‖W x‖², which is tr(W H Wᵀ); without inputs ‖W‖²."""
    wide = weight.astype(np.float64)
    if hessian is None:
        return float(np.einsum("nk,nk->", wide, wide))
    return max(0.0, float(np.einsum("nk,nk->", wide @ hessian, wide)))


def relative(error: float, power: float) -> float:
    """error / power; a weight that is zero everywhere has no error."""
    return error / power if power > 0 else 0.0


class Hessian:
    """Inputs of one or more matrices, sum of x xᵀ, and GPTQ's factor of it, made once for all."""

    def __init__(self, values: Doubles, options: Options) -> None:
        self.values = values
        self._options = options
        self._factor: tuple[Floats, npt.NDArray[np.int32]] | None = None
        self._tried = False

    def factor(self) -> "tuple[Floats, npt.NDArray[np.int32]] | None":
        """U and the order of columns; None where no damping makes it positive definite."""
        if not self._tried:
            self._tried, self._factor = True, _factor(self.values, self._options)
        return self._factor


def round_matrix(
    into: PackedWeight,
    slot: int,
    values: Floats,
    inputs: Hessian | None,
    options: Options,
) -> Rounded:
    """Pack `values` [N, K] as matrix `slot`, by the method that leaves the smaller error."""
    hessian = None if inputs is None else inputs.values
    into.fill(slot, values)
    power = output_power(values, hessian)
    plain = output_power(into.unpack_expert(slot) - values, hessian)
    format = into.expert_format(slot)
    if options.method != "gptq" or inputs is None or format not in ops.gptq_format_names():
        return Rounded("rtn", relative(plain, power))
    found = inputs.factor()
    if found is None:
        return Rounded("rtn", relative(plain, power))
    factor, order = found
    before = into.expert_bytes(slot)
    refit = not options.act_order and format != "int8"
    into.fill_gptq(slot, values, factor, order, refit=refit)
    better = output_power(into.unpack_expert(slot) - values, hessian)
    if better < plain:
        return Rounded("gptq", relative(better, power))
    into.fill_bytes(slot, before)
    return Rounded("rtn", relative(plain, power))


def _factor(hessian: Doubles, options: Options) -> "tuple[Floats, npt.NDArray[np.int32]] | None":
    diagonal = np.diagonal(hessian)
    if not np.isfinite(diagonal).all() or not diagonal.sum() > 0:
        return None
    order = np.arange(len(diagonal), dtype=np.int32)
    if options.act_order:
        order = np.argsort(-diagonal, kind="stable").astype(np.int32)
    damp = options.damp
    while damp <= _MOST_DAMP:
        factor = ops.gptq_factor(hessian, order, damp)
        if factor is not None:
            return factor, order
        damp *= 10
    return None
