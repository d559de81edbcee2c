"""Changes to choices that were made: what `Record.edit` and `intervene(substitute=)` do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


def swapped(experts: Ints, weights: Floats, swap: Mapping[int, int]) -> tuple[Ints, Floats]:
    """Experts and weights [T, K] with swap {from: to}; where `to` was chosen too, the first of the
    two slots takes both weights and the other is empty."""
    changed = experts.copy()
    for old, new in swap.items():
        changed[experts == old] = new
    for slot in range(1, changed.shape[1]):
        for earlier in range(slot):
            twice = (changed[:, slot] == changed[:, earlier]) & (changed[:, slot] >= 0)
            weights[twice, earlier] += weights[twice, slot]
            changed[twice, slot], weights[twice, slot] = -1, 0
    return changed, weights


@dataclass(frozen=True)
class Wishes:
    """What an edit does to the choices of one layer: swap, then drop, then reweight."""

    swap: Mapping[int, int]
    drop: Sequence[int]
    reweight: Mapping[int, float]

    def require_below(self, count: int, layer: int) -> None:
        """ValueError for an expert that the layer does not have."""
        for expert in (*self.swap, *self.swap.values(), *self.drop, *self.reweight):
            if not 0 <= expert < count:
                raise ValueError(f"[Record.edit] expert {expert} of layer {layer}; it has {count}")

    def applied(self, experts: Ints, weights: Floats) -> tuple[Ints, Floats]:
        """The changed experts and weights [T, K]."""
        experts, weights = swapped(experts, weights.copy(), self.swap)
        gone = np.isin(experts, self.drop)
        experts[gone], weights[gone] = -1, 0
        for expert, factor in self.reweight.items():
            weights[experts == expert] *= np.float32(factor)
        return experts, weights


def read_wishes(swap: Any, drop: Any, reweight: Any) -> Wishes:
    """What a caller of `Record.edit` asks for; ValueError or TypeError naming what is no wish."""
    for name, wish in (("swap", swap), ("reweight", reweight)):
        if wish is not None and not isinstance(wish, Mapping):
            raise TypeError(
                f"[Record.edit] {name} is {type(wish).__name__}; a mapping from experts is required"
            )
    factors = {}
    for expert, factor in (reweight or {}).items():
        if not isinstance(factor, int | float | np.number) or not np.isfinite(factor):
            raise ValueError(
                f"[Record.edit] reweight has {factor!r} for expert {expert}; a finite number is "
                "required"
            )
        factors[_expert(expert, "reweight")] = float(factor)
    return Wishes(
        {_expert(old, "swap"): _expert(new, "swap") for old, new in (swap or {}).items()},
        [_expert(e, "drop") for e in ([drop] if np.ndim(drop) == 0 else drop)],
        factors,
    )


def _expert(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"[Record.edit] {name} has {value!r}; the number of an expert is required")
    return int(value)


def rows_of(tokens: Any, count: int) -> npt.NDArray[np.int64]:
    """The row numbers that a slice, numbers or bool [tokens] select; None: all."""
    rows = np.arange(count)
    if tokens is None:
        return rows
    try:
        chosen = rows[tokens if isinstance(tokens, slice) else np.atleast_1d(np.asarray(tokens))]
    except IndexError as error:
        if np.size(tokens) == 0:
            return rows[:0]
        raise ValueError(f"[Record.edit] tokens: {error}; rows of {count} are required") from None
    return chosen
