"""Token ids as callers write them: one sequence or several, lists, arrays or tensors."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = npt.NDArray[np.int32]

TokenIds: TypeAlias = Sequence[int] | Sequence[Sequence[int]] | npt.NDArray[Any] | Any


def sequence_of(ids: Any, vocab_size: int, what: str = "ids") -> Ids:
    """One checked sequence, int32 [T]."""
    try:
        array = np.asarray(ids)
    except ValueError as error:
        raise ValueError(f"[forward] {what}: {error}; whole numbers are required") from error
    if array.ndim != 1:
        raise ValueError(f"[forward] {what} has shape {array.shape}; [T] is required")
    if not array.size:
        raise ValueError(f"[forward] {what} is empty; at least one token is required")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"[forward] {what} has dtype {array.dtype}; whole numbers are required")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"[forward] {what} has token {wrong}; 0 to {vocab_size - 1} is required")
    return np.ascontiguousarray(array, np.int32)


def sequences_of(ids: TokenIds, vocab_size: int) -> tuple[list[Ids], tuple[int, ...] | None]:
    """The sequences, and the shape that the ids had as an array: None for a list of sequences."""
    if isinstance(ids, str | bytes):
        raise ValueError("[forward] ids is text; token ids are required (generate takes text)")
    if isinstance(ids, list | tuple):
        if not ids:
            raise ValueError("[forward] ids is empty; at least one token is required")
        if any(_is_sequence(item) for item in ids):
            rows = [sequence_of(row, vocab_size, f"ids[{i}]") for i, row in enumerate(ids)]
            return rows, None
        one = sequence_of(ids, vocab_size)
        return [one], one.shape
    array = np.asarray(ids)
    if array.ndim == 2:
        if not array.size:
            raise ValueError(f"[forward] ids has shape {array.shape}; tokens are required")
        flat = sequence_of(array.reshape(-1), vocab_size)
        return list(flat.reshape(array.shape)), array.shape
    one = sequence_of(array, vocab_size)
    return [one], one.shape


def _is_sequence(item: Any) -> bool:
    return isinstance(item, list | tuple) or getattr(item, "ndim", 0) > 0
