"""What this machine reaches: bytes/s read and FLOP/s multiplied, by format, and a call's own cost.

The probes use the package's kernels on one plain matrix, so they measure the machine and its
kernels, and nothing of how a model is put together; that is what a plan predicts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from .formats import find_format
from .machines import Machine

_STREAM_BYTES = 256 << 20  # read by one pass: larger than a last-level cache
_MULTIPLY_ROWS = 128  # tokens for each expert in a long prompt


@dataclass(frozen=True)
class Probe:
    """Rates of one format on this machine."""

    format: str
    read: float  # bytes/s of a product with one row
    multiply: float  # FLOP/s of a product with many rows
    call: float  # seconds of a product that does next to nothing
    stream_bytes: int

    def machine(self, memory_bytes: int) -> Machine:
        """This machine as the planner sees it, for models of this format."""
        kind = find_format(self.format).name
        return Machine(
            name="this machine",
            memory_bytes=memory_bytes,
            bandwidth=self.read,
            peak={"f32": self.multiply, **({kind: self.multiply} if kind != "f32" else {})},
            low_bit=kind,
            call_seconds=self.call,
            source="measured with the package's own kernels",
        )


def probe(format: str, stream_bytes: int = _STREAM_BYTES, repeats: int = 7) -> Probe:
    """Measure one format; `stream_bytes` are read by each pass, so that a model that fits a cache
    is measured in it."""
    import numpy as np

    from moekit import ops

    rng = np.random.default_rng(0)
    cols = 2048
    per_row = find_format(format).nbytes(1, cols)
    rows = max(64, min(1024, stream_bytes // per_row // 16 * 16))
    count = max(1, stream_bytes // (rows * per_row))
    packed = ops.PackedWeight.empty(format, (count, rows, cols))
    matrix = rng.standard_normal((rows, cols), dtype=np.float32)
    for i in range(count):
        packed.fill(i, matrix)
    x = rng.standard_normal((count, cols), dtype=np.float32)
    offsets = np.arange(count + 1)
    read = best(lambda: ops.grouped_matmul(x, packed, offsets), repeats)

    few = max(1, min(count, 8))
    part = ops.PackedWeight.empty(format, (few, rows, cols))
    for i in range(few):
        part.fill(i, matrix)
    many = rng.standard_normal((few * _MULTIPLY_ROWS, cols), dtype=np.float32)
    bounds = np.arange(few + 1) * _MULTIPLY_ROWS
    multiply = best(lambda: ops.grouped_matmul(many, part, bounds), repeats)

    tiny = ops.pack(rng.standard_normal((16, 64), dtype=np.float32), "f32")
    row = rng.standard_normal((1, 64), dtype=np.float32)
    call = best(lambda: ops.matmul(row, tiny), 200)
    flops = 2.0 * few * _MULTIPLY_ROWS * rows * cols
    return Probe(format, packed.nbytes / read, flops / multiply, call, packed.nbytes)


@cache
def this_machine() -> Machine:
    """This machine, measured: the fastest reading of any format, a multiply peak for each kind.

    Takes a few seconds, once a process. Raises RuntimeError without the compiled core.
    """
    try:
        from moekit import ops
    except ImportError as error:
        raise RuntimeError(f"[machine] measuring needs the compiled core: {error}") from None
    kinds = [kind for kind in ("f32", "bf16", "int8") if kind in ops.format_names()]
    rates = [probe(kind, repeats=3) for kind in kinds]
    return Machine(
        name="this",
        title="this machine, measured",
        memory_bytes=memory_bytes(),
        bandwidth=max(rate.read for rate in rates),
        peak={rate.format: rate.multiply for rate in rates},
        usable=0.9,
        low_bit=kinds[-1],
        call_seconds=min(rate.call for rate in rates),
        source="measured with the package's own kernels",
    )


def best(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of `repeats` runs, after one that warms up.

    The fastest is what the machine can do; slower ones tell what else it was doing.
    """
    run()
    least = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        least = min(least, time.perf_counter() - start)
    return least


def memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
