"""moekit itself, as one of the peers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moekit import _core, ops
from moekit.ops import Assignment, Experts, PackedWeight

from .layer import Float32, Int32, Layer, Peer, Run


class Moekit(Peer):
    name = "moekit"

    def __init__(self) -> None:
        self.formats = tuple(ops.format_names())
        self._experts: Experts | None = None

    def pack(self, layer: Layer, format: str) -> None:
        self.drop()
        shape = layer.shape
        wide = (shape.experts, shape.inter, shape.hidden)
        banks = [PackedWeight.empty(format, wide), PackedWeight.empty(format, wide)]
        banks.append(PackedWeight.empty(format, (shape.experts, shape.hidden, shape.inter)))
        for expert, forms in layer.packed(_packer(format)):
            for bank, form in zip(banks, forms, strict=True):
                bank.fill_bytes(expert, form)
        self._experts = Experts(*banks)

    def prepare(self, x: Float32, experts: Int32, weights: Float32) -> Run:
        assert self._experts is not None
        bank, assignment = self._experts, Assignment(experts, weights)
        return lambda: ops.moe_ffn(x, assignment, bank)

    def drop(self) -> None:
        self._experts = None


def _packer(format: str) -> Callable[[Float32, Float32, Float32], list[np.ndarray]]:
    def pack(*matrices: Float32) -> list[np.ndarray]:
        return [ops.pack(values, format).expert_bytes(0) for values in matrices]

    return pack


def load(threads: int) -> list[Peer]:
    _core.set_num_threads(threads)
    return [Moekit()]
