"""Normalisation."""

import numpy as np
import numpy.typing as npt

from .. import ops
from .types import Floats, Weights


class RMSNorm:
    """x / sqrt(mean(x²) + eps) * weight over the last axis (Zhang & Sennrich, arXiv 1910.07467).

    `weight` [H] is kept in float32; x is float32 [..., H].
    """

    __slots__ = ("eps", "weight")

    def __init__(self, weight: npt.ArrayLike, eps: float = 1e-6) -> None:
        self.weight: Floats = np.ascontiguousarray(weight, np.float32)
        self.eps = eps
        if self.weight.ndim != 1:
            raise ValueError(f"[RMSNorm] weight has shape {self.weight.shape}; [H] is required")

    def __repr__(self) -> str:
        return f"RMSNorm({len(self.weight)}, eps={self.eps:g})"

    def __call__(self, x: Floats) -> Floats:
        return ops.rms_norm(x, self.weight, self.eps)

    def of_sum(self, x: Floats, added: Floats) -> tuple[Floats, Floats]:
        """(norm of x + added, x + added) in one pass over the rows."""
        return ops.rms_norm(x, self.weight, self.eps, residual=added)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        yield "weight", "norm", self.weight
