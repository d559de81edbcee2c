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
    """(norm(projection(x) / sqrt(H)) + embedding[id] * sqrt(P)) / sqrt(2): P numbers a layer.

    x float32 [T, H] is what the first layer reads; `embedding` [V, layers * P] is in float32,
    bfloat16 or float16; the norm goes over P.
    """

    __slots__ = ("embedding", "norm", "projection", "size")

    def __init__(
        self, embedding: npt.NDArray[Any], projection: Linear, norm: Norm, *, layers: int
    ) -> None:
        if embedding.shape[1] != projection.rows or projection.rows % layers:
            raise ValueError(
                f"[LayerInputs] embedding is {list(embedding.shape)} and projection gives "
                f"{projection.rows}; {layers} times the same size is required"
            )
        self.embedding = embedding
        self.projection = projection
        self.norm = norm
        self.size = projection.rows // layers

    def __call__(self, x: Floats, batch: Batch) -> Floats:
        """Float32 [T, layers, P]."""
        of_stream = self.projection(x)
        of_stream *= np.float32(x.shape[1] ** -0.5)
        given = self.norm(of_stream.reshape(-1, self.size)).reshape(len(x), -1, self.size)
        of_tokens = ops.embed(self.embedding, batch.ids)
        of_tokens *= np.float32(self.size**0.5)
        given += of_tokens.reshape(given.shape)
        given *= np.float32(0.5**0.5)
        return given

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        yield "embedding", "embedding", self.embedding
        for part in ("projection", "norm"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight


class LayerInputBlock(ScaledBlock):
    """A block that adds norm(projection(act(gate(x)) * input of this layer)) before it is scaled.

    The first block makes the inputs of all; `number` is that of this block among them.
    """

    __slots__ = ("activation", "gate", "input_norm", "layer_inputs", "number", "projection")

    def __init__(
        self,
        *parts: Any,
        layer_inputs: LayerInputs,
        number: int,
        gate: Linear,
        projection: Linear,
        input_norm: Norm,
        activation: str,
        **options: Any,
    ) -> None:
        super().__init__(*parts, **options)
        self.layer_inputs = layer_inputs
        self.number = number
        self.gate = gate
        self.projection = projection
        self.input_norm = input_norm
        self.activation = activation

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None:
            raise ValueError("[LayerInputBlock] no batch was given; its tokens are required")
        if self.number == 0:
            batch.layer_inputs = self.layer_inputs(x, batch)
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
        own = ("gate", "projection", "input_norm")
        for part in (*own, "layer_inputs") if self.number == 0 else own:
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight
