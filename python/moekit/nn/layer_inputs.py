"""What each layer is given of a token beside the stream (Gemma 3n, 2025; Gemma 4)."""

from typing import Any

import numpy as np
import numpy.typing as npt

from .. import ops
from .batch import Batch
from .block import Block
from .linear import Linear
from .norm import Norm
from .parallel_moe import ScaledBlock
from .types import Floats, Weights


class LayerInputs:
    """(norm(projection(x) / sqrt(H)) + table[id] * sqrt(P)) / sqrt(2), P numbers for each layer.

    x float32 [T, H] is what the first layer reads; `table` [V, layers * P] is in float32, bfloat16
    or float16; the norm goes over P.
    """

    __slots__ = ("norm", "projection", "size", "table")

    def __init__(
        self, table: npt.NDArray[Any], projection: Linear, norm: Norm, *, layers: int
    ) -> None:
        if table.shape[1] != projection.rows or projection.rows % layers:
            raise ValueError(
                f"[LayerInputs] table is {list(table.shape)} and projection gives "
                f"{projection.rows}; {layers} times the same size is required"
            )
        self.table = table
        self.projection = projection
        self.norm = norm
        self.size = projection.rows // layers

    def __call__(self, x: Floats, batch: Batch) -> Floats:
        """Float32 [T, layers, P]."""
        of_stream = self.projection(x) * np.float32(x.shape[1] ** -0.5)
        given = self.norm(of_stream.reshape(-1, self.size)).reshape(len(x), -1, self.size)
        of_tokens = ops.embed(self.table, batch.ids) * np.float32(self.size**0.5)
        given += of_tokens.reshape(given.shape)
        given *= np.float32(0.5**0.5)
        return given

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        yield "table", "embedding", self.table
        for part in ("projection", "norm"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight


class LayerInputBlock(ScaledBlock):
    """A block that adds norm(projection(act(gate(x)) * input of this layer)) before it is scaled.

    The first block makes the inputs of all; `number` is that of this block among them.
    """

    __slots__ = ("activation", "gate", "input_norm", "inputs", "number", "projection")

    def __init__(
        self,
        *parts: Any,
        inputs: LayerInputs,
        number: int,
        gate: Linear,
        projection: Linear,
        input_norm: Norm,
        activation: str,
        **options: Any,
    ) -> None:
        super().__init__(*parts, **options)
        self.inputs = inputs
        self.number = number
        self.gate = gate
        self.projection = projection
        self.input_norm = input_norm
        self.activation = activation

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None:
            raise ValueError("[LayerInputBlock] no batch was given; its tokens are required")
        if self.number == 0:
            batch.layer_inputs = self.inputs(x, batch)
        if batch.layer_inputs is None:
            raise ValueError(
                "[LayerInputBlock] the first block, which makes the inputs, comes first"
            )
        given = np.ascontiguousarray(batch.layer_inputs[:, self.number])
        y = Block.__call__(self, x, batch, layer)
        y += self.input_norm(self.projection(ops.gate(given, self.gate(y), self.activation)))
        y *= self.scale
        return y

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds; the first block's are the inputs'."""
        yield from super().weights()
        parts = ("gate", "projection", "input_norm", *(("inputs",) if self.number == 0 else ()))
        for part in parts:
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight
