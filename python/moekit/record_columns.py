"""The columns of a record: read from what callers and other engines give, checked, widened."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
# A file says how many experts a layer has; tables of that width follow.
MOST_EXPERTS = 1 << 20


def int32_of(value: npt.ArrayLike, name: str) -> Ints:
    """The same numbers in int32; ValueError for fractions and numbers that do not fit."""
    array = np.asarray(value)
    if array.dtype.kind not in "iubf":
        raise TypeError(f"[Record] {name} has dtype {array.dtype}; whole numbers are required")
    if array.dtype.kind == "f":
        whole = array.astype(np.float64)
        if not (np.isfinite(whole) & (whole == np.rint(whole))).all():
            raise ValueError(f"[Record] {name} has fractions; whole numbers are required")
    if array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
        raise ValueError(
            f"[Record] {name} are {array.min()} to {array.max()}; 32-bit numbers are required"
        )
    return np.ascontiguousarray(array, np.int32)


def column_of(
    value: npt.ArrayLike | None, default: npt.NDArray[Any], length: int, name: str
) -> npt.NDArray[np.int32]:
    column = int32_of(default if value is None else value, name)
    if column.shape != (length,):
        raise ValueError(f"[Record] {name} has shape {column.shape}; [{length}] is required")
    return column


def widened(table: npt.NDArray[Any], k: int, fill: int) -> npt.NDArray[Any]:
    missing = k - table.shape[2]
    if not missing:
        return table
    return np.pad(table, ((0, 0), (0, 0), (0, missing)), constant_values=fill)


def trace_columns(
    routed_experts: npt.ArrayLike | Sequence[npt.ArrayLike],
) -> tuple[npt.NDArray[np.int64], Ints, Ints]:
    """experts [tokens, layers, K], sequences and positions [tokens] of one trace or several."""
    parts = list(routed_experts) if isinstance(routed_experts, list | tuple) else []
    if not parts or np.ndim(parts[0]) != 3:
        parts = [np.asarray(routed_experts)]
    tables = [np.asarray(part) for part in parts]
    for table in tables:
        if table.ndim != 3 or table.dtype.kind not in "iu":
            raise ValueError(
                f"[Record] routed experts are {table.dtype} of shape {list(table.shape)}; "
                "integers [tokens, layers, K] are required"
            )
        if table.shape[1:] != tables[0].shape[1:]:
            raise ValueError(
                f"[Record] routed experts have shapes {list(tables[0].shape)} and "
                f"{list(table.shape)}; the same layers and K are required"
            )
    lengths = [len(table) for table in tables]
    whole = np.concatenate(tables).astype(np.int64)
    if whole.size and not -1 <= whole.min() <= whole.max() < MOST_EXPERTS:
        raise ValueError(
            f"[Record] routed experts are {whole.min()} to {whole.max()}; "
            "-1 (none) or an expert is required"
        )
    numbers = np.repeat(np.arange(len(tables), dtype=np.int32), lengths)
    places = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    return whole, numbers, places
