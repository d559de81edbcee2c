"""What this machine reaches: bytes/s read, FLOP/s multiplied and the cost of a call, by format.

The probes use the package's kernels on plain matrices of a given shape, so they measure the machine
and its kernels, and nothing of how a model is put together; that is what a plan predicts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from .formats import find_format
from .machines import Machine

STREAM_BYTES = 256 << 20  # read by one pass: larger than a last-level cache
_CHUNK_BYTES = 8 << 20  # read by one call: short enough to run uninterrupted
_MULTIPLY_FLOPS = 1e9  # of one call, likewise
_SHAPE = (2048, 2048)


def read_rate(
    format: str,
    stream_bytes: int | None = None,
    shape: tuple[int, int] = _SHAPE,
    repeats: int = 7,
) -> float:
    """Bytes/s of products of one row with each of many matrices [rows, cols].

    `stream_bytes` are read before a matrix comes again: a model that fits a cache is measured in
    it, a larger one from memory.
    """
    import numpy as np

    from moekit import ops

    total = STREAM_BYTES if stream_bytes is None else stream_bytes
    rows, cols = shape
    one = find_format(format).nbytes(rows, cols)
    each = max(1, min(_CHUNK_BYTES, total) // one)
    chunks = max(1, total // (each * one))
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal(shape, dtype=np.float32)
    x = rng.standard_normal((each, cols), dtype=np.float32)
    offsets = np.arange(each + 1)
    calls, nbytes = [], 0
    for _ in range(chunks):
        packed = ops.PackedWeight.empty(format, (each, rows, cols))
        for i in range(each):
            packed.fill(i, matrix)
        nbytes += packed.nbytes
        calls.append(partial(ops.grouped_matmul, x, packed, offsets))
    return nbytes / best_each(calls, repeats)


def multiply_rate(
    format: str, tokens: int, shape: tuple[int, int] = _SHAPE, repeats: int = 7
) -> float:
    """FLOP/s of `tokens` rows with each of a few matrices [rows, cols]."""
    import numpy as np

    from moekit import ops

    rows, cols = shape
    few = max(1, min(8, int(_MULTIPLY_FLOPS / (2.0 * tokens * rows * cols))))
    rng = np.random.default_rng(0)
    packed = ops.PackedWeight.empty(format, (few, rows, cols))
    matrix = rng.standard_normal(shape, dtype=np.float32)
    for i in range(few):
        packed.fill(i, matrix)
    x = rng.standard_normal((few * tokens, cols), dtype=np.float32)
    offsets = np.arange(few + 1) * tokens
    seconds = best_each([partial(ops.grouped_matmul, x, packed, offsets)], repeats)
    return 2.0 * few * tokens * rows * cols / seconds


def call_seconds() -> tuple[float, float]:
    """Seconds of a dense product and of an expert block that do next to nothing."""
    import numpy as np

    from moekit import ops

    rng = np.random.default_rng(0)
    row = rng.standard_normal((1, 64), dtype=np.float32)
    dense = ops.pack(rng.standard_normal((16, 64), dtype=np.float32), "f32")
    up = rng.standard_normal((4, 16, 64), dtype=np.float32)
    experts = ops.Experts(up, up, up.transpose(0, 2, 1), format="f32")
    chosen = ops.Assignment(np.array([[0, 2]], np.int32), np.array([[0.5, 0.5]], np.float32))
    return (
        best_each([partial(ops.matmul, row, dense)], 200),
        best_each([partial(ops.moe_ffn, row, chosen, experts)], 200),
    )


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
    dense, block = call_seconds()
    return Machine(
        name="this",
        title="this machine, measured",
        memory_bytes=memory_bytes(),
        bandwidth=max(read_rate(kind, repeats=3) for kind in kinds),
        peak={kind: multiply_rate(kind, 256) for kind in kinds},
        usable=0.9,
        low_bit=kinds[-1],
        call_seconds=dense,
        block_seconds=block,
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


def free_bytes() -> int:
    """Memory that programs may take without swapping; all of it where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return memory_bytes()
