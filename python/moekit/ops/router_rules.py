"""Routing rules that need more than one row of logits: a table, noise weights, a draw."""

from __future__ import annotations

from typing import Any

import numpy as np

from moekit.ops.arrays import Float32, as_float32, as_integers
from moekit.ops.assignment import Assignment
from moekit.ops.routing import route, weigh


def route_hash(logits: Any, token_ids: Any, table: Any, **rule: Any) -> Assignment:
    """Hash layers: a table says which experts serve a token id, the gate only weighs them.

    Roller et al. 2021 (Hash Layers, arXiv 2106.04426); DeepSeek-V4's first layers, with
    ``score="sqrtsoftplus", normalize=True, scale=1.5``.

    Args:
        logits: [T, E].
        token_ids: int [T].
        table: int [V, K], the experts of each id; -1 is an empty slot.
        rule: the keywords of :func:`weigh`.

    Raises ValueError for an id that the table does not have.
    """
    rows = as_integers(table, "route_hash", "table", np.int32, 2)
    ids = as_integers(token_ids, "route_hash", "token_ids", np.int32, 1)
    return weigh(logits, look_up(rows, ids, "route_hash"), **rule)


def look_up(table: Any, token_ids: Any, op: str) -> Any:
    """table[token_ids], int32 [T, K]; ValueError for an id that has no row."""
    bad = (token_ids < 0) | (token_ids >= len(table))
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"[{op}] token {at} has id {token_ids[at]}; 0 to {len(table) - 1} is required"
        )
    return np.ascontiguousarray(table[token_ids])


def route_noisy(
    logits: Any, noise_logits: Any, k: int, *, normal: Any = None, seed: int | None = None
) -> Assignment:
    """Noisy top-k: H = x·W_gate + N(0, 1) · softplus(x·W_noise), a softmax over the k largest of H.

    Shazeer et al. 2017 (Outrageously Large Neural Networks, arXiv 1701.06538), equations 3 to 5.

    Args:
        logits: [T, E], x·W_gate.
        noise_logits: [T, E], x·W_noise.
        k: experts per token.
        normal: [T, E], the standard normal draws; or
        seed: draws them: a row's noise depends on the seed and its place. With neither there is
            no noise, as in evaluation.
    """
    rows = as_float32(logits, "route_noisy", "logits", 2)
    spread = softplus(as_float32(noise_logits, "route_noisy", "noise_logits", 2))
    if spread.shape != rows.shape:
        raise ValueError(
            f"[route_noisy] noise_logits has shape {list(spread.shape)}; "
            f"{list(rows.shape)} is required"
        )
    if normal is not None and seed is not None:
        raise ValueError("[route_noisy] normal and seed were given; one of the two is required")
    if normal is None and seed is None:
        return route(rows, k, score="softmax_topk")
    drawn = (
        np.random.default_rng(seed).standard_normal(rows.shape, np.float32)
        if normal is None
        else as_float32(normal, "route_noisy", "normal", 2)
    )
    if drawn.shape != rows.shape:
        raise ValueError(
            f"[route_noisy] normal has shape {list(drawn.shape)}; {list(rows.shape)} is required"
        )
    return route(rows, k, score="softmax_topk", noise=drawn * spread)


def softplus(x: Float32) -> Float32:
    """log(1 + e^x), float32, without overflow: the spread of noisy top-k."""
    result: Float32 = np.logaddexp(np.float32(0), x)
    return result


def route_gshard(logits: Any, *, uniform: Any = None, seed: int | None = None) -> Assignment:
    """GShard's top 2: weights g1, g2 divided by their sum; the second choice may be left to chance.

    Lepikhin et al. 2020 (arXiv 2006.16668), algorithm 1: the second expert is used where
    2·g2 > a uniform draw, g2 after normalising. The capacity is :func:`limit_capacity`'s: dropped
    choices keep their share to themselves, the other weight does not grow.

    Args:
        logits: [T, E], E at least 2.
        uniform: [T], draws from [0, 1); or
        seed: makes them. With neither, both experts are always used.
    """
    if uniform is not None and seed is not None:
        raise ValueError("[route_gshard] uniform and seed were given; one of the two is required")
    both = route(logits, 2, normalize=True)
    if uniform is None and seed is None:
        return both
    drawn = (
        np.random.default_rng(seed).random(len(both), np.float32)
        if uniform is None
        else as_float32(uniform, "route_gshard", "uniform", 1)
    )
    if len(drawn) != len(both):
        raise ValueError(f"[route_gshard] uniform has {len(drawn)} draws; {len(both)} are required")
    # A NaN row keeps both: its damage stays visible.
    left_out = 2 * both.weights[:, 1] <= drawn
    experts, weights = both.experts.copy(), both.weights.copy()
    experts[left_out, 1], weights[left_out, 1] = -1, 0
    return Assignment(experts, weights, expert_count=both.expert_count)


def selection_scores(logits: Float32, score: str, select_bias: Float32 | None = None) -> Any:
    """What ranks the experts, float64 [..., E]: the rule's scores plus the selection bias.

    Rules that rank by the logits themselves (every softmax without a bias) give the logits.
    """
    x = logits.astype(np.float64)
    if score == "sigmoid":
        x = 0.5 * (1 + np.tanh(0.5 * x))
    elif score == "sqrtsoftplus":
        x = np.sqrt(np.logaddexp(0, x))
    elif score == "softmax" and select_bias is not None:
        shares = np.exp(x - x.max(axis=-1, keepdims=True))
        x = shares / shares.sum(axis=-1, keepdims=True)
    return x if select_bias is None else x + select_bias


def margins_of(scores: Any, experts: Any) -> Float32:
    """The least score of the chosen minus the largest of the others, float32 [...].

    Args:
        scores: [..., E]; experts: int [..., K], -1 for an empty slot.

    0 is a tie; negative where something else than the scores decided (groups, a mask, an edit);
    inf where nobody, or everybody, was chosen.
    """
    count = scores.shape[-1]
    chosen = np.zeros((*scores.shape[:-1], count + 1), np.bool_)
    np.put_along_axis(chosen, np.where(experts < 0, count, experts).astype(np.int64), True, axis=-1)
    chosen = chosen[..., :count]
    least = np.where(chosen, scores, np.inf).min(axis=-1, initial=np.inf)
    best = np.where(chosen, -np.inf, scores).max(axis=-1, initial=-np.inf)
    margins: Float32 = (least - best).astype(np.float32)
    return margins
