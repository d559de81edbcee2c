"""The next token from its logits."""

from __future__ import annotations

import operator
import secrets
from typing import Any

import numpy as np
import numpy.typing as npt

from moekit import _core
from moekit.ops.arrays import Int64, as_float32

_UINT64 = (1 << 64) - 1


def _per_row(values: Any, rows: int, name: str) -> npt.NDArray[np.uint64]:
    """One number for each row, or one for all, modulo 2^64."""
    many = np.asarray(values, dtype=object).ravel()
    if many.size not in (1, rows):
        raise ValueError(f"[sample] {name} has {many.size} entries; 1 or {rows} is required")
    try:
        wrapped = [operator.index(value) & _UINT64 for value in many]
    except TypeError:
        raise TypeError(f"[sample] {name} is {values!r}; integers are required") from None
    return np.ascontiguousarray(np.broadcast_to(np.array(wrapped, dtype=np.uint64), rows))


def sample(
    logits: Any,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    *,
    seed: Any = None,
    step: Any = 0,
) -> Int64:
    """Draws the next token of every row; int64 [B], or a scalar for logits [V].

    The filters come in this order: temperature, top_k, top_p, min_p. The draw takes the token at
    which the cumulated probability, in the order of ids, passes a uniform number made of
    (seed, step) alone: the same seed gives the same text for any batch and number of threads.

    Args:
        logits: [B, V] or [V]; -inf forbids a token.
        temperature: divides the logits; 0 takes the largest, ties go to the lower id.
        top_k: only the k largest, and what is tied with the k-th; 0 is all.
        top_p: only the most probable tokens whose probabilities first reach top_p (Holtzman et
            al. 2020); at least one.
        min_p: only tokens with at least min_p times the largest probability (Nguyen et al. 2024).
        seed: one integer, or one for each row; None takes a new one from the system.
        step: how many tokens came before in this text; one integer, or one for each row.

    Raises ValueError for arguments out of range, and for a row that holds NaN or +inf or nothing
    but -inf.
    """
    rows = as_float32(logits, "sample", "logits", (1, 2))
    batch = rows.reshape(1, -1) if rows.ndim == 1 else rows
    if seed is None:
        seed = secrets.randbits(64)
    ids = _core.sample(
        batch,
        temperature,
        top_k,
        top_p,
        min_p,
        _per_row(seed, len(batch), "seed"),
        _per_row(step, len(batch), "step"),
    )
    return ids[0] if rows.ndim == 1 else ids
