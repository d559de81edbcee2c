"""Softmax attention over the keys and values of one sequence."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from moekit import _core
from moekit.ops.arrays import (
    Array,
    Float32,
    QuantisedRows,
    as_float32,
    check_ndim,
    to_numpy,
)


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float | None = None,
    causal: bool = True,
    first_position: int | None = None,
    window: int | None = None,
    chunk: int | None = None,
    sinks: Any = None,
    softcap: float | None = None,
    bias: Any = None,
    key_mask: Any = None,
) -> Float32:
    """softmax(scale · q · kᵀ + bias) · v for every query and head.

    Vaswani et al. 2017, section 3.2.1; grouped heads: Ainslie et al. 2023.

    Args:
        q: float32 [T, Hq, D]. Query head h reads kv head h // (Hq / Hk).
        k: [S, Hk, D] in float32, bfloat16, float16 or as :class:`QuantisedRows`; Hq is a multiple
            of Hk. Read in place: a slice of a cache costs nothing.
        v: [S, Hk, Dv] in k's dtype.
        scale: of the scores; 1 / sqrt(D) by default.
        causal: a query at position p sees the keys 0 to p only.
        first_position: the first query's position among the keys; S - T by default, which is where
            the tokens stand that were appended last.
        window: a query sees only the ``window`` last keys, its own included (Mistral).
        chunk: a query sees only keys j with j // chunk equal to its own p // chunk (Llama 4).
        sinks: float32 [Hq], one score more in each softmax, with no value (gpt-oss).
        softcap: scores become softcap · tanh(score / softcap) before bias and masks (Grok-1).
        bias: float32 [T, S] or [Hq, T, S] (each but the last may be 1), added to the scores; -inf
            masks (T5's relative positions, sparse selections).
        key_mask: bool [S]; False hides a key from every query (padding).

    Returns float32 [T, Hq, Dv]; 0 where a query sees no key. What a query does not see contributes
    nothing, NaN included. The bytes of a query's row do not depend on the queries beside it, so a
    prompt may come in pieces of any size. With AMX, queries and weights over keys in 16 or 8 bits
    are rounded to 16 bits; those over float32 keys never are.

    Raises ValueError where shapes do not fit, TypeError for other dtypes.
    """
    op = "attention"
    queries = heads_of(q, op, "q", np.float32)
    both = isinstance(k, QuantisedRows) and isinstance(v, QuantisedRows)
    keys, key_scales = _rows_of(k, op, "k", both)
    values, value_scales = _rows_of(v, op, "v", both)
    return _run(
        op,
        queries,
        None,
        keys,
        values,
        1.0 / math.sqrt(max(queries.shape[2], 1)) if scale is None else scale,
        causal=causal,
        first_position=first_position,
        window=window,
        chunk=chunk,
        sinks=sinks,
        softcap=softcap,
        bias=bias,
        key_mask=key_mask,
        scales=(key_scales, value_scales),
    )


def mla_attention(
    q_latent: Any,
    q_rope: Any,
    cache: Any,
    *,
    scale: float,
    causal: bool = True,
    first_position: int | None = None,
    window: int | None = None,
    chunk: int | None = None,
    sinks: Any = None,
    softcap: float | None = None,
    bias: Any = None,
    key_mask: Any = None,
) -> Float32:
    """Multi-head latent attention in its absorbed form: every head reads the one latent cache.

    DeepSeek-V2 (2024), section 2.1 and appendix C. With W_UK folded into the queries, a head's
    score is q_latent · latent + q_rope · k_rope and its value is the latent itself, for W_UV to
    unfold.

    Args:
        q_latent: float32 [T, Hq, L], the position-free part of the queries times W_UK.
        q_rope: float32 [T, Hq, R], their rotated part.
        cache: [S, L + R] in float32, bfloat16, float16 or as :class:`QuantisedRows`: normalised
            latent, then rotated key.
        scale: of the scores. It has no default: it comes from the head's width before absorption.

    The other arguments, and the promises, are those of :func:`attention`.

    Returns float32 [T, Hq, L].
    """
    op = "mla_attention"
    latent = heads_of(q_latent, op, "q_latent", np.float32)
    rope = heads_of(q_rope, op, "q_rope", np.float32)
    scales = None
    if isinstance(cache, QuantisedRows):
        cache, scales = cache.values, to_numpy(cache.scales, op, "cache's scales")
        scales = _by_head(scales[:, None] if scales.ndim == 1 else scales, op, "cache")
    rows = to_numpy(cache, op, "cache")
    check_ndim(rows, 2, op, "cache")
    width = latent.shape[2] + rope.shape[2]
    if rows.shape[1] != width:
        raise ValueError(
            f"[{op}] cache has {rows.shape[1]} columns; q_latent and q_rope have {width}"
        )
    keys = heads_of(rows[:, None, :], op, "cache")
    return _run(
        op,
        latent,
        rope,
        keys,
        keys[:, :, : latent.shape[2]],
        scale,
        causal=causal,
        first_position=first_position,
        window=window,
        chunk=chunk,
        sinks=sinks,
        softcap=softcap,
        bias=bias,
        key_mask=key_mask,
        scales=(scales, scales),
    )


def _run(
    op: str,
    q: Array,
    q_tail: Array | None,
    k: Array,
    v: Array,
    scale: float,
    *,
    causal: bool,
    first_position: int | None,
    window: int | None,
    chunk: int | None,
    sinks: Any,
    softcap: float | None,
    bias: Any,
    key_mask: Any,
    scales: tuple[Float32 | None, Float32 | None],
) -> Float32:
    tokens, heads = q.shape[:2]
    if first_position is None:
        first_position = len(k) - tokens
        if first_position < 0 and causal:
            raise ValueError(
                f"[{op}] q has {tokens} tokens and k {len(k)}; "
                "causal queries stand at the last keys unless first_position says otherwise"
            )
        first_position = max(first_position, 0)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"[{op}] softcap is {softcap}; more than 0 is required")
    if bias is not None:
        bias = _broadcast_bias(bias, op, (heads, tokens, len(k)))
    if key_mask is not None:
        key_mask = np.ascontiguousarray(to_numpy(key_mask, op, "key_mask"))
    result: Float32 = _core.attention(
        op,
        q,
        q_tail,
        k,
        v,
        scale,
        causal,
        operator.index(first_position),
        _length(window, op, "window"),
        _length(chunk, op, "chunk"),
        softcap or 0.0,
        None if sinks is None else as_float32(sinks, op, "sinks", 1),
        bias,
        key_mask,
        *scales,
    )
    return result


def _rows_of(x: Any, op: str, name: str, in_8_bits: bool) -> tuple[Array, Float32 | None]:
    """Keys or values, and their scales where both are quantised."""
    if not in_8_bits:
        return heads_of(x, op, name), None
    return heads_of(x.values, op, name), _by_head(x.scales, op, name)


def _by_head(scales: Any, op: str, name: str) -> Float32:
    """Scales [tokens, heads], a head's side by side in memory as a cache holds them."""
    array = to_numpy(scales, op, f"{name}'s scales")
    if array.dtype == np.float32 and array.strides[:1] == (4,):
        return array
    return np.asfortranarray(as_float32(array, op, f"{name}'s scales"))


def heads_of(x: Any, op: str, name: str, dtype: type[np.float32] | None = None) -> Array:
    """[tokens, heads, width] with contiguous, aligned rows: copied only where they are not."""
    array = to_numpy(x, op, name)
    check_ndim(array, 3, op, name)
    if dtype is not None and array.dtype != dtype:
        return as_float32(array, op, name)
    if not array.flags.aligned or (array.strides[2] != array.itemsize and array.shape[2] > 1):
        return np.array(array, order="C")
    return array


def _length(value: int | None, op: str, name: str) -> int:
    if value is None:
        return 0
    if operator.index(value) < 1:
        raise ValueError(f"[{op}] {name} is {value}; at least 1 is required")
    return operator.index(value)


def _broadcast_bias(bias: Any, op: str, shape: tuple[int, int, int]) -> Array:
    array = to_numpy(bias, op, "bias")
    check_ndim(array, (2, 3), op, "bias")
    # Rows any distance apart are read in place: biases by distance are views of one line.
    array = heads_of(array[None] if array.ndim == 2 else array, op, "bias", np.float32)
    fits = zip(array.shape[:2], shape[:2], strict=True)
    if array.shape[2] != shape[2] or not all(have in (1, want) for have, want in fits):
        raise ValueError(
            f"[{op}] bias has shape {list(np.shape(bias))}; "
            f"{list(shape[1:])} or {list(shape)} is required"
        )
    return np.broadcast_to(array, shape)
