"""Normalisation."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from .. import ops
from ..ops.watched import Watched
from .types import Floats, Weights


class Norm(Protocol):
    """What a block or an attention asks of a norm: float32 [..., H] in and out."""

    def __call__(self, x: Floats) -> Floats: ...
    def of_sum(self, x: Floats, added: Floats) -> tuple[Floats, Floats]: ...
    def weights(self) -> Weights: ...
    @property
    def size(self) -> int | None: ...


class RMSNorm(Watched):
    """x / sqrt(mean(x²) + eps) * (weight + offset) over the last axis.

    Zhang & Sennrich, arXiv 1910.07467. `weight` [H] is kept in float32, None is 1 (Llama 4's norm
    of queries and keys); `offset` is 1 where a checkpoint stores the weight minus one (Gemma,
    Qwen3-Next). x is float32 [..., H].
    """

    __slots__ = ("eps", "offset", "weight")

    def __init__(
        self, weight: npt.ArrayLike | None, eps: float = 1e-6, *, offset: float = 0.0
    ) -> None:
        self.weight = _vector(weight, "RMSNorm")
        self.eps = eps
        self.offset = offset

    def __repr__(self) -> str:
        return f"RMSNorm({self.size}, eps={self.eps:g})"

    @property
    def size(self) -> int | None:
        """H, or None without a weight, which fits every size."""
        return None if self.weight is None else len(self.weight)

    def __call__(self, x: Floats) -> Floats:
        return ops.rms_norm(x, self.weight, self.eps, offset=self.offset)

    def of_sum(self, x: Floats, added: Floats) -> tuple[Floats, Floats]:
        """(norm of x + added, x + added) in one pass over the rows."""
        return ops.rms_norm(x, self.weight, self.eps, offset=self.offset, residual=added)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        if self.weight is not None:
            yield "weight", "norm", self.weight


class LayerNorm:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis.

    Ba et al., arXiv 1607.06450. `weight` and `bias` [H] are float32; None leaves either out.
    """

    __slots__ = ("bias", "eps", "weight")

    def __init__(
        self,
        weight: npt.ArrayLike | None,
        bias: npt.ArrayLike | None = None,
        eps: float = 1e-5,
    ) -> None:
        self.weight = _vector(weight, "LayerNorm")
        self.bias = _vector(bias, "LayerNorm")
        self.eps = eps

    def __repr__(self) -> str:
        return f"LayerNorm({self.size}, bias={self.bias is not None}, eps={self.eps:g})"

    @property
    def size(self) -> int | None:
        """H, or None without a weight."""
        return None if self.weight is None else len(self.weight)

    def __call__(self, x: Floats) -> Floats:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def of_sum(self, x: Floats, added: Floats) -> tuple[Floats, Floats]:
        """(norm of x + added, x + added)."""
        total = x + added
        return self(total), total

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for name, vector in (("weight", self.weight), ("bias", self.bias)):
            if vector is not None:
                yield name, "norm", vector


def _vector(values: npt.ArrayLike | None, owner: str) -> Floats | None:
    if values is None:
        return None
    vector = np.ascontiguousarray(values, np.float32)
    if vector.ndim != 1:
        raise ValueError(f"[{owner}] weight has shape {vector.shape}; [H] is required")
    return vector
