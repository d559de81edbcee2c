"""How evenly experts are used: measures of a load, with the formulas that define them."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..counters import Counters
from ..ops import Assignment
from ..ops.arrays import as_float32, to_numpy
from ..record import Record

Doubles = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]


class Load(NamedTuple):
    """Measures of the load of E experts, each with one entry per layer (numbers for one layer).

    With n_e tokens on expert e and p_e = n_e / Σ n. Where nothing was routed all but `dead` is
    nan.
    """

    #: How many experts got no token.
    dead: Any
    #: e^entropy: as many experts, used evenly, would have this entropy. 1 to E.
    effective_experts: Any
    #: Standard deviation / mean of n.
    cv: Any
    #: max(n) / mean(n) - 1 (MaxVio, Wang et al. 2024): 0 when even, E - 1 on one expert.
    max_violation: Any
    #: -Σ p ln p, in nats: ln E when even.
    entropy: Any
    #: Gini coefficient of n: 0 when even, 1 - 1/E on one expert.
    gini: Any

    @property
    def max_over_mean(self) -> Any:
        """max(n) / mean(n): how long the slowest device works, one expert on each."""
        return self.max_violation + 1


def counts_of(routed: Record | Counters | Assignment | npt.ArrayLike) -> tuple[Doubles, Longs]:
    """Counts [layers, E] and how many experts each layer has, [layers]."""
    if isinstance(routed, Record | Counters):
        return routed.counts.astype(np.float64), routed.num_experts.astype(np.int64)
    if isinstance(routed, Assignment):
        routed = routed.counts
    counts = to_numpy(routed, "load", "counts")
    if counts.ndim not in (1, 2) or counts.shape[-1] == 0:
        raise ValueError(
            f"[load] counts has shape {list(counts.shape)}; [E] or [layers, E] is required"
        )
    if counts.dtype.kind not in "iuf" or not (counts >= 0).all():
        raise ValueError("[load] counts has entries that are no number of tokens")
    table = np.atleast_2d(counts).astype(np.float64)
    return table, np.full(len(table), table.shape[1], np.int64)


def load(routed: Record | Counters | Assignment | npt.ArrayLike) -> Load:
    """Measures how evenly experts are used.

    Args:
        routed: a record, counters, an assignment, or counts [E] or [layers, E].

    For a record, counters or counts [layers, E] every measure is an array [layers]; for an
    assignment or counts [E] a number.
    """
    counts, sizes = counts_of(routed)
    rows = [_measures(row[:size]) for row, size in zip(counts, sizes, strict=True)]
    single = isinstance(routed, Assignment) or (
        not isinstance(routed, Record | Counters) and np.ndim(routed) == 1
    )
    if single:
        dead, *others = rows[0]
        return Load(int(dead), *others)
    table = np.array(rows, dtype=np.float64).reshape(-1, 6).T
    return Load(table[0].astype(np.int64), *table[1:])


def _measures(n: Doubles) -> tuple[float, ...]:
    dead, total = float((n == 0).sum()), float(n.sum())
    if total == 0:
        return (dead, *[float("nan")] * 5)
    p = n[n > 0] / total
    entropy = float((p * np.log(1 / p)).sum())
    mean = float(n.mean())
    ranks = np.arange(1, n.size + 1)
    gini = float(2 * (ranks * np.sort(n)).sum() / (n.size * total) - (n.size + 1) / n.size)
    violation = float(n.max()) / mean - 1
    return (dead, float(np.exp(entropy)), float(n.std()) / mean, violation, entropy, gini)


def oscillation(counts: npt.ArrayLike) -> Doubles:
    """How much the load moves from batch to batch, by layer: 0 when it stays, up to 1.

    The mean over steps of half the absolute change of the shares, Σ_e |p_e(t+1) - p_e(t)| / 2:
    the part of the tokens that would have to change their expert.

    Args:
        counts: [steps, E] or [steps, layers, E], a load at a time.

    Returns float64 [] or [layers]; nan where fewer than two steps have tokens.
    """
    table = to_numpy(counts, "oscillation", "counts").astype(np.float64)
    if table.ndim not in (2, 3):
        raise ValueError(
            f"[oscillation] counts has shape {list(table.shape)}; "
            "[steps, E] or [steps, layers, E] is required"
        )
    totals = table.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shares = table / totals
    moved = np.abs(np.diff(shares, axis=0)).sum(axis=-1) / 2
    known = ~np.isnan(moved)
    with np.errstate(invalid="ignore"):
        mean: Doubles = np.where(known, moved, 0).sum(axis=0) / known.sum(axis=0)
    return mean


def coactivation(routed: Record | Assignment) -> Doubles:
    """How often experts are chosen together: entry [a, b] is P(b chosen | a chosen).

    Float64 [layers, E, E] for a record, [E, E] for an assignment; 1 on the diagonal, nan in the
    row of an expert that was never chosen (OLMoE: Muennighoff et al. 2024, section 5.2).
    """
    if isinstance(routed, Assignment):
        return _coactivation(routed.experts, routed.expert_count)
    most = int(routed.num_experts.max(initial=0))
    layers = [_coactivation(routed.experts[:, i], most) for i in range(len(routed.layers))]
    return np.stack(layers) if layers else np.zeros((0, most, most))


def _coactivation(experts: npt.NDArray[np.int32], count: int) -> Doubles:
    chosen = np.zeros((len(experts), count + 1), np.float64)
    np.put_along_axis(chosen, np.where(experts < 0, count, experts).astype(np.int64), 1.0, axis=1)
    chosen = chosen[:, :count]
    together = chosen.T @ chosen
    with np.errstate(invalid="ignore"):
        shares: Doubles = together / np.diag(together)[:, None]
    return shares


def margins(logits: Any, k: int) -> Doubles:
    """How sure a choice was: the k-th largest logit minus the next one, float64 [...].

    Args:
        logits: [..., E].
        k: experts per token, below E.

    A margin of 0 is a tie; a change of the logits below half of it cannot change the choice.
    """
    rows = as_float32(logits, "margins", "logits")
    if rows.ndim == 0 or not 1 <= k < rows.shape[-1]:
        raise ValueError(
            f"[margins] k is {k}, logits has shape {list(rows.shape)}; 1 to E - 1 is required"
        )
    split = np.partition(rows.astype(np.float64), [-k - 1, -k], axis=-1)
    difference: Doubles = split[..., -k] - split[..., -k - 1]
    return difference
