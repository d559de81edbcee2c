"""DeepSeek's sparse and compressed attention, and its residual streams."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from moekit import _core
from moekit.ops.arrays import Array, Float32, Int32, as_float32, as_integers, check_ndim, to_numpy
from moekit.ops.attention import heads_of


def select_keys(queries: Any, weights: Any, keys: Any, k: int, *, visible: Any = None) -> Int32:
    """The k keys that an indexer's heads want most: int32 [T, k], ascending, -1 behind.

    Score of key j: sum over heads of weight · max(0, query · key). DeepSeek-V3.2-Exp (2025),
    section 2, equation 1.

    Args:
        queries: float32 [T, heads, D].
        weights: float32 [T, heads].
        keys: [S, D] in float32, bfloat16 or float16; read in place.
        k: keys to select.
        visible: int [T]: a query chooses among the keys before this one; by default the queries
            stand at the last keys and see those up to themselves.

    Between equal scores the earlier key is taken. A row's choice depends on that query and the keys
    it sees alone. Raises ValueError where shapes do not fit.
    """
    op = "select_keys"
    heads = heads_of(queries, op, "queries", np.float32)
    rows = to_numpy(keys, op, "keys")
    check_ndim(rows, 2, op, "keys")
    if visible is None:
        visible = np.arange(len(rows) - len(heads), len(rows), dtype=np.int64) + 1
    return _core.select_keys(
        heads,
        as_float32(weights, op, "weights", 2),
        heads_of(rows[:, None, :], op, "keys"),
        as_integers(visible, op, "visible", np.int64, 1),
        operator.index(k),
    )


def sparse_attention(
    q: Any,
    rows: Any,
    selected: Any,
    *,
    scale: float,
    value_dim: int | None = None,
    q_rope: Any = None,
    sinks: Any = None,
) -> Float32:
    """softmax(scale · q · kᵀ) · v over the rows selected for each query: float32 [T, Hq, Dv].

    Every head reads the same rows, whose first columns are their values: a latent cache with
    ``q_rope`` as in :func:`mla_attention`, or DeepSeek-V4's keys that are values too.

    Args:
        q: float32 [T, Hq, D]; ``q_rope`` [T, Hq, R] are more of its columns.
        rows: [S, D + R] in float32, bfloat16 or float16, or several such arrays, whose rows are
            counted through: read in place.
        selected: int32 [T, n]: the rows of each query, in the order of their sum; -1 is none.
        scale: of the scores.
        value_dim: how many columns are values; D by default.
        sinks: float32 [Hq], one score more in each softmax, with no value.

    Returns 0 where a query has no row. A query's bytes depend on it and on its rows alone. Raises
    ValueError for rows that are not there and shapes that do not fit.
    """
    op = "sparse_attention"
    queries = heads_of(q, op, "q", np.float32)
    several: Sequence[Any] = rows if isinstance(rows, list | tuple) else [rows]
    sources: list[Array] = []
    for source in several:
        array = to_numpy(source, op, "rows")
        check_ndim(array, 2, op, "rows")
        sources.append(heads_of(array[:, None, :], op, "rows"))
    return _core.sparse_attention(
        op,
        queries,
        None if q_rope is None else heads_of(q_rope, op, "q_rope", np.float32),
        sources,
        queries.shape[2] if value_dim is None else operator.index(value_dim),
        as_integers(selected, op, "selected", np.int32, 2),
        scale,
        None if sinks is None else as_float32(sinks, op, "sinks", 1),
    )


def pool_windows(values: Any, gates: Any) -> Float32:
    """Σ softmax(gates) · values over each window: float32 [W, D] for values and gates [W, m, D].

    Every column has a softmax of its own; a gate of -inf leaves its value out. DeepSeek-V4 (2026),
    section 2.3.2. Raises ValueError where the shapes differ.
    """
    op = "pool_windows"
    return _core.pool_windows(
        as_float32(values, op, "values", 3), as_float32(gates, op, "gates", 3)
    )


def hyper_connection(
    mixes: Any, base: Any, scales: Any, streams: int, *, iterations: int = 20, eps: float = 1e-6
) -> tuple[Float32, Float32, Float32]:
    """(read [T, n], write [T, n], mix [T, n, n]) of manifold-constrained hyper-connections.

    read = sigmoid + eps, write = 2 · sigmoid, mix = a softmax over rows made doubly stochastic by
    Sinkhorn and Knopp's normalisation. Xie et al. 2026; DeepSeek-V4 (2026), section 2.2.

    Args:
        mixes: float32 [T, (2 + n) n], what a token's streams were projected to.
        base: float32 [(2 + n) n], added. scales: float32 [3], of the three parts.
        streams: n.

    Raises ValueError where shapes do not fit.
    """
    op = "hyper_connection"
    return _core.hyper_connection(
        as_float32(mixes, op, "mixes", 2),
        as_float32(base, op, "base", 1),
        as_float32(scales, op, "scales", 1),
        operator.index(streams),
        operator.index(iterations),
        eps,
    )


def mix_streams(streams: Any, weights: Any, added: Any = None, factors: Any = None) -> Float32:
    """Σ_j weights[t, j, k] · streams[t, j] + factors[t, k] · added[t]: float32 [T, m, H].

    How hyper-connections read their n streams (m = 1) and write them anew. Added in the order of j.

    Args:
        streams: float32 [T, n, H].
        weights: float32 [T, n, m].
        added: float32 [T, H], with factors [T, m]; or neither.

    Raises ValueError where shapes do not fit.
    """
    op = "mix_streams"
    return _core.mix_streams(
        as_float32(streams, op, "streams", 3),
        as_float32(weights, op, "weights", 3),
        None if added is None else as_float32(added, op, "added", 2),
        None if factors is None else as_float32(factors, op, "factors", 2),
    )
