"""The layer that everybody computes, and what a peer has to offer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moekit.bench import Shape

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Run = Callable[[], Float32]


class Missing(Exception):
    """A library that is not installed, or cannot do this here; the message is one line."""


class Layer:
    """E experts of random normal weights, of variance 1 / depth.

    An expert is a window of one run of numbers, each at another place: all differ, and none takes
    memory of its own before somebody packs it.
    """

    _STEP = 7919  # a prime: windows do not align with rows

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._count = shape.hidden * shape.inter
        rng = np.random.default_rng(0)
        self._values = [
            rng.standard_normal(self._count + self._STEP * shape.experts, np.float32)
            for _ in range(3)
        ]
        for values, depth in zip(
            self._values, (shape.hidden, shape.hidden, shape.inter), strict=True
        ):
            values /= np.float32(depth**0.5)

    def expert(self, index: int) -> tuple[Float32, Float32, Float32]:
        """gate [F, H], up [F, H] and down [H, F]; views."""
        start = self._STEP * index
        gate, up, down = (values[start : start + self._count] for values in self._values)
        hidden, inter = self.shape.hidden, self.shape.inter
        return gate.reshape(inter, hidden), up.reshape(inter, hidden), down.reshape(hidden, inter)

    def reference(self, x: Float32, experts: Int32, weights: Float32) -> Float32:
        """The definition, for a few tokens."""
        out = np.zeros_like(x)
        for token, (ids, scales) in enumerate(zip(experts, weights, strict=True)):
            for index, scale in zip(ids, scales, strict=True):
                gate, up, down = self.expert(int(index))
                hidden = gate @ x[token]
                hidden = hidden / (1 + np.exp(-hidden)) * (up @ x[token])
                out[token] += scale * (down @ hidden)
        return out


class Peer(Protocol):
    """One way of computing the layer."""

    name: str
    formats: tuple[str, ...]

    def pack(self, layer: Layer, format: str) -> None:
        """Takes the weights; what it held before is dropped."""

    def prepare(self, x: Float32, experts: Int32, weights: Float32) -> Run:
        """What is timed. Inputs are in the library's own form before that; the output is read."""

    def drop(self) -> None:
        """Frees the weights."""
