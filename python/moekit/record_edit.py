"""Changes to choices that were made: what `Record.edit` and `intervene(substitute=)` do."""

from collections.abc import Iterable, Mapping

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


def edited(
    experts: Ints,
    weights: Floats,
    swap: Mapping[int, int],
    drop: Iterable[int],
    reweight: Mapping[int, float],
) -> tuple[Ints, Floats]:
    """Experts and weights [T, K], first swapped, then dropped, then reweighted."""
    experts, weights = swapped(experts, weights.copy(), swap)
    gone = np.isin(experts, list(drop))
    experts[gone], weights[gone] = -1, 0
    for expert, factor in reweight.items():
        weights[experts == expert] *= np.float32(factor)
    return experts, weights
