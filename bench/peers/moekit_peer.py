"""moekit itself, as one of the peers."""

from __future__ import annotations

from moekit import _core, ops
from moekit.ops import Assignment, Experts, PackedWeight

from .layer import Float32, Int32, Layer, Peer, Run


class Moekit:
    name = "moekit"

    def __init__(self) -> None:
        self.formats = tuple(ops.format_names())
        self._experts: Experts | None = None

    def pack(self, layer: Layer, format: str) -> None:
        self.drop()
        shape = layer.shape
        wide = (shape.experts, shape.inter, shape.hidden)
        gate, up = PackedWeight.empty(format, wide), PackedWeight.empty(format, wide)
        down = PackedWeight.empty(format, (shape.experts, shape.hidden, shape.inter))
        for e in range(shape.experts):
            for packed, values in zip((gate, up, down), layer.expert(e), strict=True):
                packed.fill(e, values)
        self._experts = Experts(gate, up, down)

    def prepare(self, x: Float32, experts: Int32, weights: Float32) -> Run:
        assert self._experts is not None
        bank, assignment = self._experts, Assignment(experts, weights)
        return lambda: ops.moe_ffn(x, assignment, bank)

    def drop(self) -> None:
        self._experts = None


def load(threads: int) -> list[Peer]:
    _core.set_num_threads(threads)
    return [Moekit()]
