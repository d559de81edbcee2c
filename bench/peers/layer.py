"""The layer that everybody computes, and what a peer has to offer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Run = Callable[[], Any]
T = TypeVar("T")


class Missing(Exception):
    """A library that is not installed, or cannot do this here; the message is one line."""


class Sizes(Protocol):
    """What `moekit.bench.Shape` says, for interpreters that have no moekit."""

    @property
    def hidden(self) -> int: ...
    @property
    def inter(self) -> int: ...
    @property
    def experts(self) -> int: ...
    @property
    def top_k(self) -> int: ...


@dataclass(frozen=True)
class PlainSizes:
    hidden: int
    inter: int
    experts: int
    top_k: int


class Layer:
    """E experts of random normal weights, of variance 1 / depth.

    There are seven different experts, over and over, three to five where they are large: rounding
    gigabytes of weights would take far longer than running them. The number is a prime, so that an
    index that is wrong by a power of two gives another result. A pattern is a window of one run of
    numbers, each at another place: all differ, and none takes memory before somebody packs it.
    """

    _LARGE = 300_000_000  # weights of all patterns
    _STEP = 7919  # a prime: windows do not align with rows
    _FILES = ("gate.npy", "up.npy", "down.npy")

    def __init__(self, shape: Sizes, values: list[Float32] | None = None) -> None:
        self.shape = shape
        self._count = shape.hidden * shape.inter
        self._patterns = next((p for p in (7, 5) if 3 * p * self._count < self._LARGE), 3)
        if values is not None:
            self._values = values
            return
        rng = np.random.default_rng(0)
        self._values = [
            rng.standard_normal(self._count + self._STEP * self._patterns, np.float32)
            for _ in range(3)
        ]
        for numbers, depth in zip(
            self._values, (shape.hidden, shape.hidden, shape.inter), strict=True
        ):
            numbers /= np.float32(depth**0.5)

    def save(self, folder: Path) -> None:
        """For other processes; they share what they read."""
        for name, numbers in zip(self._FILES, self._values, strict=True):
            np.save(folder / name, numbers)

    @classmethod
    def open(cls, shape: Sizes, folder: Path) -> Layer:
        return cls(shape, [np.load(folder / name, mmap_mode="c") for name in cls._FILES])

    def expert(self, index: int) -> tuple[Float32, Float32, Float32]:
        """gate [F, H], up [F, H] and down [H, F]; views."""
        start = self._STEP * (index % self._patterns)
        gate, up, down = (values[start : start + self._count] for values in self._values)
        hidden, inter = self.shape.hidden, self.shape.inter
        return gate.reshape(inter, hidden), up.reshape(inter, hidden), down.reshape(hidden, inter)

    def packed(
        self, pack: Callable[[Float32, Float32, Float32], T], threads: int = 1
    ) -> Iterator[tuple[int, T]]:
        """Every expert's index and its packed form, made once for each pattern."""
        different = range(min(self._patterns, self.shape.experts))
        with ThreadPoolExecutor(threads) as pool:
            forms = list(pool.map(lambda index: pack(*self.expert(index)), different))
        for index in range(self.shape.experts):
            yield index, forms[index % self._patterns]

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


class Peer:
    """One way of computing the layer."""

    name: str
    formats: tuple[str, ...]

    def pack(self, layer: Layer, format: str) -> None:
        """Takes the weights; what it held before is dropped."""
        raise NotImplementedError

    def prepare(self, x: Float32, experts: Int32, weights: Float32) -> Run:
        """What is timed. Inputs are in the library's own form before that, and so is the output."""
        raise NotImplementedError

    def values(self, out: Any) -> Float32:
        """A run's output as numbers [T, H]; not timed."""
        return np.asarray(out, np.float32)

    def release(self) -> None:
        """Frees what `prepare` made; its runs are over."""

    def drop(self) -> None:
        """Frees the weights."""
