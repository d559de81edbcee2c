"""A linear layer over packed weights."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .. import ops
from ..ops import PackedWeight
from ..ops.watched import Watched
from .types import Floats, Weights


class Linear(Watched):
    """y = x Wᵀ + bias, with W [rows, cols] packed in any format.

    `weight` is a PackedWeight, or an array [rows, cols] that is packed in `format`; `bias` [rows]
    is float32. x is float32 [T, cols], the result float32 [T, rows].
    """

    __slots__ = ("bias", "kind", "weight")

    def __init__(
        self,
        weight: PackedWeight | npt.ArrayLike,
        bias: npt.ArrayLike | None = None,
        format: str = "f32",
        kind: str = "linear",
    ) -> None:
        packed = weight if isinstance(weight, PackedWeight) else ops.pack(weight, format=format)
        self.weight = packed
        self.kind = kind
        self.bias: Floats | None = None if bias is None else np.ascontiguousarray(bias, np.float32)
        if len(packed.shape) != 2:
            raise ValueError(f"[Linear] weight has shape {packed.shape}; [rows, cols] is required")
        if self.bias is not None and self.bias.shape != (packed.shape[0],):
            raise ValueError(
                f"[Linear] bias has shape {self.bias.shape}; [{packed.shape[0]}] is required"
            )

    def __repr__(self) -> str:
        return f"Linear({self.weight!r}, bias={self.bias is not None})"

    @property
    def rows(self) -> int:
        return self.weight.shape[0]

    @property
    def cols(self) -> int:
        return self.weight.shape[1]

    def __call__(self, x: Floats) -> Floats:
        return ops.matmul(x, self.weight, self.bias)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        yield "weight", self.kind, self.weight
        if self.bias is not None:
            yield "bias", self.kind, self.bias


def together(layers: Sequence[Linear], x: Floats) -> list[Floats]:
    """What each of the layers gives for the same rows: one call, which converts them once."""
    if any(type(layer) is not Linear for layer in layers):
        return [layer(x) for layer in layers]
    return ops.matmul_each(x, [layer.weight for layer in layers], [layer.bias for layer in layers])
