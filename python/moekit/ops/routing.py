"""Which experts a token goes to: one table of arguments for the rules that see a row at a time."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from moekit import _core
from moekit.ops.arrays import Array, Float32, Int32, as_float32, as_integers, check_ndim, to_numpy
from moekit.ops.assignment import Assignment, Origin


@lru_cache(maxsize=256)
def router_rule(
    k: int,
    score: str = "softmax",
    groups: int = 1,
    top_groups: int = 1,
    group_score: str = "top2",
    group_fill: str = "-inf",
    normalize: bool = False,
    normalize_eps: float = 1e-20,
    normalize_min: float = 0.0,
    scale: float = 1.0,
    jitter_eps: float = 0.01,
) -> _core.RouterRule:
    """The arguments of :func:`route` as the core reads them."""
    return _core.RouterRule(
        score=score,
        top_k=k,
        groups=groups,
        top_groups=top_groups,
        group_score=group_score,
        group_fill=group_fill,
        normalize=normalize,
        normalize_eps=normalize_eps,
        normalize_min=normalize_min,
        scale=scale,
        jitter_eps=jitter_eps,
    )


def _as_mask(mask: Any, op: str) -> Array:
    array = to_numpy(mask, op, "mask")
    check_ndim(array, (1, 2), op, "mask")
    if array.dtype != np.bool_:
        raise TypeError(f"[{op}] mask has dtype {array.dtype}; bool is required")
    return np.ascontiguousarray(array)


def route(
    logits: Any,
    k: int,
    *,
    score: str = "softmax",
    select_bias: Any = None,
    noise: Any = None,
    groups: int = 1,
    top_groups: int = 1,
    group_score: str = "top2",
    group_fill: str = "-inf",
    normalize: bool = False,
    normalize_eps: float = 1e-20,
    normalize_min: float = 0.0,
    scale: float = 1.0,
    jitter_eps: float = 0.01,
    mask: Any = None,
    check_finite: bool = False,
) -> Assignment:
    """Chooses k experts for each token: scores them, selects the best, weighs the selected.

    Everything is float32. Experts of a token come best first; ties go to the lower id. NaN ranks
    as -inf and makes all weights of its row NaN: damage stays visible, in that row only. A token's
    bytes depend on its own row alone.

    Args:
        logits: [T, E].
        k: experts per token.
        score: ``softmax`` over all E, then top-k (Switch, Mixtral, Qwen, DeepSeek-V2; without a
            bias it ranks by the logits themselves) · ``softmax_topk``: top-k, then softmax over
            the chosen (gpt-oss, Granite) · ``sigmoid`` (DeepSeek-V3) · ``sqrtsoftplus``:
            sqrt(log(1 + e^x)) (DeepSeek-V4) · ``input_sigmoid``: top-k of the logits, whose
            sigmoid scales the expert's input (Llama 4) · ``sparsemixer`` (Liu et al. 2024,
            Phi-3.5-MoE): for each slot a softmax over what lies within 2·jitter_eps of the best
            that is left.
        select_bias: float32 [E], added to the scores for selecting, never for weighing
            (Wang et al. 2024, loss-free balancing).
        noise: [T, E], added to the logits before all else (Shazeer et al. 2017, noisy top-k).
        groups, top_groups: experts in ``groups`` equal runs of ids, of which only the best
            ``top_groups`` keep theirs (DeepSeek-V2, section 2.2.2).
        group_score: ``top2``, the sum of a group's two best (DeepSeek-V3), or ``max`` (V2).
        group_fill: what experts of the other groups compete with: ``-inf``, not at all, or ``0``
            (DeepSeek-V2 and Mistral 4; differs where scores are negative).
        normalize: divides the weights by the larger of (their sum + normalize_eps) and
            normalize_min (ERNIE 4.5).
        scale: multiplies the weights at the end.
        mask: bool [E] or [T, E]; a forbidden expert (True) is as if it did not exist, for the
            softmax too. Where fewer than k remain, the last slots hold -1 with weight 0.
        check_finite: raises ValueError naming the token and expert of a logit that is not finite.

    Raises ValueError for k, groups, shapes or names that do not fit.
    """
    rule = router_rule(
        k,
        score,
        groups,
        top_groups,
        group_score,
        group_fill,
        normalize,
        normalize_eps,
        normalize_min,
        scale,
        jitter_eps,
    )
    rows = as_float32(logits, "route", "logits", 2)
    return route_by(
        rule,
        rows,
        select_bias=None
        if select_bias is None
        else as_float32(select_bias, "route", "select_bias"),
        noise=None if noise is None else as_float32(noise, "route", "noise", 2),
        mask=None if mask is None else _as_mask(mask, "route"),
        check_finite=check_finite,
    )


def route_by(
    rule: _core.RouterRule,
    logits: Float32,
    *,
    select_bias: Float32 | None = None,
    noise: Float32 | None = None,
    mask: Array | None = None,
    check_finite: bool = False,
) -> Assignment:
    """:func:`route` for arrays that fit already, with a rule made once: for every layer's call."""
    experts, weights = _core.route(logits, rule, select_bias, noise, mask, check_finite)
    assignment = Assignment.trusted(experts, weights, logits.shape[1], rule)
    assignment.origin = Origin(logits, rule, select_bias, noise, mask)
    return assignment


def weigh(
    logits: Any,
    experts: Any,
    *,
    score: str = "softmax",
    noise: Any = None,
    normalize: bool = False,
    normalize_eps: float = 1e-20,
    normalize_min: float = 0.0,
    scale: float = 1.0,
    jitter_eps: float = 0.01,
    mask: Any = None,
) -> Assignment:
    """Weighs experts that were chosen elsewhere, as :func:`route` would have weighed them.

    For hash layers (DeepSeek-V4: ids by token id, weights by the gate) and edited routings.

    Args:
        logits: [T, E].
        experts: int [T, K]; -1 is an empty slot and gets weight 0.
        score, noise, normalize, normalize_eps, normalize_min, scale, jitter_eps, mask: as in
            :func:`route`.

    Raises ValueError for an id that is no expert.
    """
    rows = as_float32(logits, "weigh", "logits", 2)
    ids = as_integers(experts, "weigh", "experts", np.int32, 2)
    rule = router_rule(
        max(ids.shape[1], 1),
        score,
        1,
        1,
        "top2",
        "-inf",
        normalize,
        normalize_eps,
        normalize_min,
        scale,
        jitter_eps,
    )
    return weigh_by(
        rule,
        rows,
        ids,
        noise=None if noise is None else as_float32(noise, "weigh", "noise", 2),
        mask=None if mask is None else _as_mask(mask, "weigh"),
    )


def weigh_by(
    rule: _core.RouterRule,
    logits: Float32,
    experts: Int32,
    *,
    noise: Float32 | None = None,
    mask: Array | None = None,
) -> Assignment:
    """:func:`weigh` for arrays that fit already, with a rule made once."""
    weights = _core.weigh(logits, rule, experts, noise, mask)
    return Assignment.trusted(experts, weights, logits.shape[1], rule)


def route_threshold(
    logits: Any,
    *,
    min_p: float | None = None,
    top_p: float | None = None,
    threshold: float | None = None,
    k_max: int | None = None,
    normalize: bool = False,
) -> Assignment:
    """A number of experts of its own for every token, by the probabilities of a softmax over all.

    Give one of:
        min_p: experts with at least min_p times the row's largest probability (at least one).
        top_p: the most probable experts whose probabilities first reach top_p (Huang et al. 2024,
            section 3.1); at least one, unless top_p is 0.
        threshold: experts with at least this probability; may be none at all (conditional
            compute: such a token passes by the experts).

    Args:
        logits: [T, E].
        k_max: at most so many experts, and the width K of the result; E by default. Slots that
            are not used hold -1 and weight 0.
        normalize: divides the weights by their sum.

    A row with NaN keeps its k_max best, with NaN weights. Raises ValueError unless one criterion is
    given, between 0 and 1.
    """
    op = "route_threshold"
    given = {"min_p": min_p, "top_p": top_p, "threshold": threshold}
    criteria = {name: p for name, p in given.items() if p is not None}
    if len(criteria) != 1:
        raise ValueError(
            f"[{op}] {' and '.join(criteria) or 'nothing'} was given; "
            "one of min_p, top_p, threshold is required"
        )
    name, p = next(iter(criteria.items()))
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"[{op}] {name} is {p}; 0 to 1 is required")
    rows = as_float32(logits, op, "logits", 2)
    k = rows.shape[1] if k_max is None else k_max
    rule = router_rule(k)
    experts, weights = _core.route(rows, rule, None, None, None, False)
    if name == "min_p":
        kept = weights >= np.float32(p) * weights[:, :1]
    elif name == "top_p":
        kept = np.cumsum(weights, axis=1, dtype=np.float64) - weights < p
    else:
        kept = weights >= np.float32(p)
    kept |= np.isnan(weights)
    experts = np.where(kept, experts, np.int32(-1))
    weights = np.where(kept, weights, np.float32(0))
    if normalize:
        weights /= weights.sum(axis=1, keepdims=True) + np.float32(1e-20)
    return Assignment.trusted(experts, weights, rows.shape[1], rule)
