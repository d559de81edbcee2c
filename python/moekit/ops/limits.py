"""What this machine can do at best: the read bandwidth and the multiply peaks.

A block cannot be faster than its roofline, ``max(bytes / read bandwidth, operations / multiply
peak)`` seconds (Williams, Waterman, Patterson 2009). Both are measured, not looked up: the memory
of a virtual machine may be twice as fast in one minute as in the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from moekit import _core

DOTS = ("f32", "bf16", "u8s8", "bf16x2")
"""The dot products that kernels multiply with: float32, pairs of bfloat16, four int8, floats as
sums of bfloat16 numbers (two for a weight, three for an activation: five products)."""


@dataclass(frozen=True)
class MachineLimits:
    """Limits of all threads together; medians and the best of several passes in turn."""

    cpu: str
    isa: str
    threads: int
    read_bandwidth: float
    """Bytes per second, from memory that no cache holds, on huge pages."""
    best_read_bandwidth: float
    multiply_peak: dict[str, float]
    """Operations per second of each dot product; a multiply-add is two."""
    best_multiply_peak: dict[str, float]

    def seconds(self, nbytes: float, operations: float, dot: str) -> float:
        """The roofline: the time below which nothing can read and multiply so much."""
        return max(nbytes / self.read_bandwidth, operations / self.multiply_peak[dot])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class LimitProbe:
    """Single measurements, to be taken between runs of what is compared with them.

    Args:
        read_bytes: what one pass reads; 0 is eight times the last level cache, at least 256 MiB.
            The memory is allocated and touched here, once.
        clock: ``"wall"``, or ``"cpu"``: the process's processor time divided by its threads, which
            is what the time would be if the machine did nothing else meanwhile.

    Raises ValueError below 1 MiB or for another clock, MemoryError.
    """

    def __init__(self, read_bytes: int = 0, clock: str = "wall") -> None:
        self._core = _core.LimitProbe(read_bytes, clock)
        self._clock = clock

    def now(self) -> float:
        """Seconds of the probe's clock."""
        return _core.clock_seconds(self._clock)

    @property
    def read_bytes(self) -> int:
        return self._core.bytes

    def read_bandwidth(self) -> float:
        """One pass: bytes per second."""
        return self._core.read_bandwidth()

    def multiply_peak(self, dot: str) -> float:
        """A few milliseconds: operations per second of ``dot``, one of DOTS."""
        return self._core.multiply_peak(dot)


def machine_limits(
    *, threads: int | None = None, read_bytes: int = 0, passes: int = 7, clock: str = "wall"
) -> MachineLimits:
    """Measures the limits with ``threads`` threads (None: those in use), in about a second.

    Args:
        read_bytes, clock: see :class:`LimitProbe`.
        passes: measurements of each figure.

    Raises ValueError for numbers that are not positive, MemoryError.
    """
    with threads_set_to(threads):
        core = _core.measure_limits(read_bytes, passes, clock)
    return MachineLimits(
        cpu=_core.cpu_name(),
        isa=_core.isa(),
        threads=core.threads,
        read_bandwidth=core.read_bandwidth.median,
        best_read_bandwidth=core.read_bandwidth.best,
        multiply_peak={dot: core.multiply_peak(dot).median for dot in DOTS},
        best_multiply_peak={dot: core.multiply_peak(dot).best for dot in DOTS},
    )


@contextmanager
def threads_set_to(threads: int | None) -> Iterator[None]:
    """Uses so many threads inside of the block; None changes nothing."""
    before = _core.num_threads()
    if threads is not None:
        _core.set_num_threads(threads)
    try:
        yield
    finally:
        _core.set_num_threads(before)


def dot_of(format: str, rows: int, cols: int, compute: str = "auto") -> str:
    """The dot product, one of DOTS, that a matrix [rows, cols] of ``format`` is multiplied with.

    Raises ValueError for an unknown format or ``compute``.
    """
    return _core.dot_of(format, rows, cols, compute)
