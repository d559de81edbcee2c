"""How fast the block runs here, and how near that is to what the machine can do.

The block is gate · up · activate · down · combine of one layer (:func:`moekit.ops.moe_ffn`);
routing is not timed. Runs take turns with measurements of the read bandwidth and of the multiply
peak, so each line is compared with the limits of the same seconds:

    fraction = max(bytes of weights touched / bandwidth, operations / peak) / time

Weights come from memory: experts take turns, and the resident ones are many times as large as the
last level cache. Where a layer does not fit into ``memory``, its experts share the memory of
``resident`` ones, which keeps the number of experts, of rows for each and of bytes read. Their
values are 64 random rows, repeated; no kernel's time depends on them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from moekit import _core
from moekit.ops.assignment import Assignment
from moekit.ops.experts import Experts, moe_ffn
from moekit.ops.limits import LimitProbe, dot_of
from moekit.ops.weights import PackedWeight, pack

TOKENS = (1, 4, 16, 64, 512)
MEMORY = 1 << 30
_PATTERN_ROWS = 64
_FEWEST_RUNS = 3


@dataclass(frozen=True)
class Shape:
    """The sizes of a layer."""

    name: str
    hidden: int
    inter: int
    experts: int
    top_k: int

    def __post_init__(self) -> None:
        if min(self.hidden, self.inter, self.experts, self.top_k) < 1:
            raise ValueError(f"[bench] shape {self.sizes()}; every size must be positive")
        if self.top_k > self.experts:
            raise ValueError(f"[bench] shape {self.sizes()}; top_k is more than the experts")

    def sizes(self) -> str:
        """As ``parse_shape`` reads it."""
        return f"{self.hidden},{self.inter},{self.experts},{self.top_k}"

    def operations(self, tokens: int) -> int:
        """Of the three products; a multiply-add is two."""
        return 6 * tokens * self.top_k * self.hidden * self.inter

    def dot(self, format: str, compute: str = "auto") -> str:
        """The dot product that the experts are multiplied with (see ``dot_of``)."""
        return dot_of(format, self.inter, self.hidden, compute)

    def expert_bytes(self, format: str) -> int:
        """Packed bytes of one expert."""
        gate = _core.packed_bytes(format, self.inter, self.hidden)
        return 2 * gate + _core.packed_bytes(format, self.hidden, self.inter)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("mixtral-8x7b", 4096, 14336, 8, 2),
        Shape("olmoe-1b-7b", 2048, 1024, 64, 8),
        Shape("qwen3-30b-a3b", 2048, 768, 128, 8),
        Shape("deepseek-v3", 7168, 2048, 256, 8),
    )
}


def parse_shape(text: str) -> Shape:
    """A name of SHAPES, or ``H,F,E,K``. Raises ValueError."""
    if text in SHAPES:
        return SHAPES[text]
    try:
        hidden, inter, experts, top_k = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"[bench] shape {text[:40]!r}; H,F,E,K or one of {', '.join(SHAPES)} is required"
        ) from None
    return Shape(text, hidden, inter, experts, top_k)


@dataclass(frozen=True)
class Figure:
    """One line of the table. Times are seconds, rates per second."""

    shape: str
    format: str
    compute: str
    tokens: int
    dot: str
    runs: int
    min: float
    median: float
    p99: float
    weight_bytes: float
    """Of the experts that a run touches, in the mean of the runs."""
    operations: int
    read_bandwidth: float
    multiply_peak: float
    experts: int
    resident: int
    """Experts with memory of their own."""
    resident_bytes: int

    @property
    def bytes_per_second(self) -> float:
        return self.weight_bytes / self.median

    @property
    def operations_per_second(self) -> float:
        return self.operations / self.median

    @property
    def bound(self) -> str:
        """What limits the block here: ``read`` or ``multiply``."""
        reading = self.weight_bytes / self.read_bandwidth
        return "read" if reading >= self.operations / self.multiply_peak else "multiply"

    @property
    def fraction(self) -> float:
        """Of the machine's limit: roofline time / median time."""
        reading = self.weight_bytes / self.read_bandwidth
        return max(reading, self.operations / self.multiply_peak) / self.median

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "bytes_per_second": self.bytes_per_second,
            "operations_per_second": self.operations_per_second,
            "bound": self.bound,
            "fraction": self.fraction,
        }


def choose_experts(
    shape: Shape, tokens: int, count: int, *, resident: int | None = None
) -> list[Assignment]:
    """``count`` routings of ``tokens`` tokens to go through in turn, with weights of 1/K.

    Where a batch can be served by the ``resident`` experts (None: all), each of those is used
    before one is used again, so that none lies in a cache; larger batches choose at random, as an
    untrained router would.
    """
    resident = resident or shape.experts
    rng = np.random.default_rng(tokens)
    weights = np.full((tokens, shape.top_k), 1 / shape.top_k, np.float32)
    slots = tokens * shape.top_k
    queue: list[int] = []
    routings = []
    for _ in range(count):
        if slots <= resident:
            if len(queue) < slots:
                queue = rng.permutation(resident).tolist()
            chosen = np.array([queue.pop() for _ in range(slots)])
        else:
            ranks = rng.random((tokens, shape.experts))
            chosen = np.argpartition(ranks, shape.top_k - 1, axis=1)[:, : shape.top_k]
        ids = np.ascontiguousarray(chosen.reshape(tokens, shape.top_k), np.int32)
        routings.append(Assignment(ids, weights))
    return routings


class Block:
    """The experts of one layer in one format, filled with random values.

    Raises ValueError for an unknown format, MemoryError.
    """

    def __init__(self, shape: Shape, format: str, memory: int = MEMORY) -> None:
        self.shape = shape
        self.format = format
        fitting = max(1, memory // shape.expert_bytes(format))
        self.resident = min(shape.experts, max(shape.top_k, fitting))
        rng = np.random.default_rng(0)
        gate, up = (self._packed(rng, shape.inter, shape.hidden) for _ in range(2))
        self.experts = Experts(gate, up, self._packed(rng, shape.hidden, shape.inter))

    def _packed(self, rng: np.random.Generator, rows: int, cols: int) -> PackedWeight:
        values = rng.standard_normal((_PATTERN_ROWS, cols), np.float32) / np.float32(cols**0.5)
        core = _core.PackedWeight.repeating(
            pack(values, self.format).core, self.shape.experts, rows, self.resident
        )
        return PackedWeight(core, (self.shape.experts, rows, cols))

    def measure(
        self,
        tokens: int,
        probe: LimitProbe,
        *,
        seconds: float = 1.0,
        compute: str = "auto",
    ) -> Figure:
        """Runs ``tokens`` tokens for about ``seconds``, in turn with the probe."""
        routings = choose_experts(self.shape, tokens, 16, resident=self.resident)
        touched = [int(np.unique(routing.experts).size) for routing in routings]
        x = np.random.default_rng(1).standard_normal((tokens, self.shape.hidden), np.float32)
        dot = self.shape.dot(self.format, compute)
        times: list[float] = []
        experts_read: list[int] = []
        bandwidths: list[float] = []
        peaks: list[float] = []
        moe_ffn(x, routings[-1], self.experts, compute=compute)
        end = time.monotonic() + seconds
        while len(times) < _FEWEST_RUNS or time.monotonic() < end:
            bandwidths.append(probe.read_bandwidth())
            peaks.append(probe.multiply_peak(dot))
            # Short runs come in rows as long as the probes, which else would take most of the time.
            turn = time.monotonic() + probe.read_bytes / bandwidths[-1]
            while True:
                at = len(times) % len(routings)
                start = probe.now()
                moe_ffn(x, routings[at], self.experts, compute=compute)
                times.append(probe.now() - start)
                experts_read.append(touched[at])
                if time.monotonic() >= turn:
                    break
        return Figure(
            shape=self.shape.name,
            format=self.format,
            compute=compute,
            tokens=tokens,
            dot=dot,
            runs=len(times),
            min=min(times),
            median=statistics.median(times),
            p99=float(np.quantile(times, 0.99)),
            weight_bytes=statistics.fmean(experts_read) * self.shape.expert_bytes(self.format),
            operations=self.shape.operations(tokens),
            read_bandwidth=statistics.median(bandwidths),
            multiply_peak=statistics.median(peaks),
            experts=self.shape.experts,
            resident=self.resident,
            resident_bytes=self.resident * self.shape.expert_bytes(self.format),
        )


def measure(
    shapes: Sequence[Shape],
    formats: Sequence[str],
    tokens: Sequence[int] = TOKENS,
    *,
    seconds: float = 1.0,
    compute: str = "auto",
    memory: int = MEMORY,
    clock: str = "wall",
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Figure]:
    """The table, line by line, in the order of the arguments.

    Args:
        seconds: for each line, at least three runs.
        memory: bytes of experts with memory of their own; K of them at least.
        clock: ``"wall"``, or ``"cpu"`` where the machine does other things meanwhile.
        progress: is told what is measured next.

    Raises ValueError for unknown formats, no tokens or a time that is not positive.
    """
    for format in formats:
        dot_of(format, 1, 1, compute)  # a wrong name is told before minutes have passed
    for count in tokens:
        if count < 1:
            raise ValueError(f"[bench] {count} tokens; at least 1 is required")
    if not seconds > 0:
        raise ValueError(f"[bench] {seconds} seconds; more than 0 are required")
    probe = LimitProbe(clock=clock)
    for shape in shapes:
        for format in formats:
            progress(f"{shape.name} {format}: packing")
            block = Block(shape, format, memory)
            for count in tokens:
                progress(f"{shape.name} {format}: {count} tokens")
                yield block.measure(count, probe, seconds=seconds, compute=compute)
