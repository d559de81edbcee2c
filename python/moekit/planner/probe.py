"""What this machine reaches: bytes/s read and FLOP/s multiplied, by format, and a call's own cost.

The probes use the package's kernels on one plain matrix, so they measure the machine and its
kernels, and nothing of how a model is put together; that is what a plan predicts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from .formats import find_format
from .machines import Machine

STREAM_BYTES = 256 << 20  # read by one pass: larger than a last-level cache
_MULTIPLY_ROWS = 128  # tokens for each expert in a long prompt


@dataclass(frozen=True)
class Probe:
    """Rates of one format on this machine."""

    format: str
    read: float  # bytes/s of products with one row
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


def probe(format: str, stream_bytes: int | None = None, repeats: int = 7) -> Probe:
    """Measure one format; `stream_bytes` are read by each pass, so that a model that fits a cache
    is measured in it."""
    import numpy as np

    from moekit import ops

    stream_bytes = STREAM_BYTES if stream_bytes is None else stream_bytes
    rng = np.random.default_rng(0)
    cols = 2048
    per_row = find_format(format).nbytes(1, cols)
    rows = max(64, min(2048, stream_bytes // per_row // 16 * 16))
    count = max(1, stream_bytes // (rows * per_row))
    matrix = rng.standard_normal((rows, cols), dtype=np.float32)
    packed = [ops.pack(matrix, format) for _ in range(count)]
    x = rng.standard_normal((1, cols), dtype=np.float32)
    read = best_each([partial(ops.matmul, x, weight) for weight in packed], repeats)
    many = rng.standard_normal((_MULTIPLY_ROWS, cols), dtype=np.float32)
    few = packed[:4]
    multiply = best_each([partial(ops.matmul, many, weight) for weight in few], repeats)

    tiny = ops.pack(rng.standard_normal((16, 64), dtype=np.float32), "f32")
    row = rng.standard_normal((1, 64), dtype=np.float32)
    call = best_each([partial(ops.matmul, row, tiny)], 200)
    flops = 2.0 * len(few) * _MULTIPLY_ROWS * rows * cols
    nbytes = sum(weight.nbytes for weight in packed)
    return Probe(format, nbytes / read, flops / multiply, call, nbytes)


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


def best_each(calls: Sequence[Callable[[], Any]], repeats: int) -> float:
    """Seconds of a pass over `calls`, each at its fastest of `repeats` passes after a first one.

    A pass of a second is never free of interruptions, a call of a millisecond often is; the
    fastest is what the machine can do, the others tell what else it was doing.
    """
    for call in calls:
        call()
    least = [float("inf")] * len(calls)
    for _ in range(repeats):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            least[i] = min(least[i], time.perf_counter() - start)
    return sum(least)


def memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
