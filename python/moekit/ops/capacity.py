"""Experts that have room for a number of tokens: they choose, or they turn tokens away."""

from __future__ import annotations

from typing import Any

import numpy as np

from moekit import _core
from moekit.ops.arrays import as_float32, check_type
from moekit.ops.assignment import Assignment
from moekit.ops.routing import router_rule


def route_expert_choice(logits: Any, capacity: int) -> Assignment:
    """Expert choice (Zhou et al. 2022): every expert takes its ``capacity`` best tokens.

    Balanced by construction, and **not causal**: whether an expert takes a token depends on the
    tokens after it, and on the rest of the batch. Do not generate text with it.

    Args:
        logits: [T, E].
        capacity: tokens per expert; more than T counts as T.

    Returns an assignment whose K is the largest number of experts that took one token (at least
    1), with the experts of a token best first, padded with -1. Weights are the softmax over all
    experts. Between equal scores the earlier token is taken.
    """
    op = "route_expert_choice"
    rows = as_float32(logits, op, "logits", 2)
    tokens, count = rows.shape
    everyone = np.broadcast_to(np.arange(count, dtype=np.int32), (tokens, count))
    softmax = router_rule(max(count, 1))
    scores = _core.weigh(rows, softmax, np.ascontiguousarray(everyone), None, None)
    chosen = _core.choose_tokens(scores, capacity)
    k = max(1, int(chosen.sum(axis=1).max(initial=0)))
    rule = softmax.with_top_k(k)
    experts, _ = _core.route(rows, rule, None, None, ~chosen, False)
    # Masked experts are out of route's softmax; here the weights come from the one over all.
    return Assignment.trusted(experts, _core.weigh(rows, rule, experts, None, None), count, rule)


def limit_capacity(
    assignment: Assignment,
    E: int,
    capacity_factor: float = 1.0,
    overflow: str = "drop",
    *,
    capacity: int | None = None,
    scores: Any = None,
) -> Assignment:
    """Gives every expert room for C = ceil(T·K / E · capacity_factor) tokens.

    First choices are placed before second ones, each in the order of tokens (GShard: Lepikhin et
    al. 2020, algorithm 1; Switch: Fedus et al. 2021, section 2.2).

    Args:
        assignment: as :func:`route` gives it.
        E: the number of experts.
        capacity_factor: 1.0 is room for a perfectly balanced load.
        overflow: ``drop``: a choice that finds its expert full is dropped, the other weights stay
            · ``next_best``: the token's best expert with room that is none of its choices takes
            its place, and the token is weighed anew · ``none``: dropless, nothing changes.
        capacity: C itself, instead of capacity_factor (Switch's checkpoints hold it so).
        scores: [T, E], for ``next_best`` with an assignment that :func:`route` did not make:
            ranks the experts, and weighs those that take a place.

    Returns a new assignment with -1 and weight 0 where a choice was dropped and ``.dropped``, how
    many there are. Raises ValueError for what does not fit.
    """
    op = "limit_capacity"
    check_type(assignment, Assignment, op, "assignment")
    tokens, k = assignment.experts.shape
    if overflow not in ("drop", "next_best", "none"):
        raise ValueError(
            f"[{op}] overflow is {overflow!r}; one of drop, next_best, none is required"
        )
    if capacity is None:
        if not (capacity_factor >= 0.0 and np.isfinite(capacity_factor)):
            raise ValueError(f"[{op}] capacity_factor is {capacity_factor}; 0 or more is required")
        # Not all factors are binary fractions: 10 · 1.1 is to give 11, not 12.
        capacity = int(np.ceil(round(tokens * k * capacity_factor / max(E, 1), 9)))
    if capacity < 0:
        raise ValueError(f"[{op}] capacity is {capacity}; 0 or more is required")
    if overflow == "none":
        capacity = tokens * k
    origin = assignment.origin
    ranking = None
    if overflow == "next_best":
        if scores is not None:
            ranked = as_float32(scores, op, "scores", 2)
            ranking, _ = _core.route(
                ranked, router_rule(E, "softmax_topk"), None, None, None, False
            )
        elif origin is not None:
            rule = origin.rule
            reachable = origin.logits.shape[1] // rule.groups * rule.top_groups
            ranking, _ = _core.route(
                origin.logits,
                rule.with_top_k(reachable),
                origin.select_bias,
                origin.noise,
                origin.mask,
                False,
            )
        else:
            raise ValueError(
                f"[{op}] the assignment was not made by route; scores are required for next_best"
            )
    experts, dropped = _core.limit_capacity(assignment.experts, E, capacity, ranking)
    moved = experts != assignment.experts
    if not moved.any():
        weights = assignment.weights.copy()
    elif overflow == "next_best" and scores is not None:
        at = np.maximum(experts, 0)
        weights = np.where(moved, np.take_along_axis(ranked, at, axis=1), assignment.weights)
    elif overflow == "next_best" and origin is not None:
        anew = _core.weigh(origin.logits, origin.rule, experts, origin.noise, origin.mask)
        weights = np.where(moved.any(axis=1, keepdims=True), anew, assignment.weights)
    else:
        weights = assignment.weights.copy()
    weights[experts < 0] = 0.0
    limited = Assignment(experts, weights, expert_count=E, on_input=assignment.on_input)
    limited.dropped = np.int64(dropped)
    limited.origin = origin
    return limited
