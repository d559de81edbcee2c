"""How often every expert of every layer was used, counted while a model runs."""

from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


class Counters:
    """The load of each layer's experts: what `model.record(counters=True)` fills.

    `layers` are the model's own numbers, `num_experts` [layers] the experts each has. A pass is
    counted when it is complete, all layers at once; one that is interrupted is not.
    """

    def __init__(self, layers: npt.ArrayLike, num_experts: npt.ArrayLike) -> None:
        self.layers: Ints = np.asarray(layers, np.int32)
        self.num_experts: Ints = np.asarray(num_experts, np.int32)
        # A row for every layer of the model up to the last one with experts.
        self._shape = int(self.layers.max(initial=-1)) + 1, int(self.num_experts.max(initial=0))
        # The first one, and more where passes have run at a time: in threads that have the
        # block's context, or one in another's router.
        self._tallies = [_core.ExpertTally(*self._shape)]
        #: Those that no pass counts in now.
        self.idle = list(self._tallies)

    def new_tally(self) -> _core.ExpertTally:
        """What a pass counts in where none is idle."""
        self._tallies.append(_core.ExpertTally(*self._shape))
        return self._tallies[-1]

    def add_running(self, tally: _core.ExpertTally, tokens: int) -> None:
        """Count a pass that is complete now in somebody else's tally."""
        self._tallies[0].add_running(tally, tokens)

    @property
    def counts(self) -> Longs:
        """int64 [layers, E]: how many tokens each expert served."""
        counts: Longs = np.sum([tally.counts for tally in self._tallies], axis=0)
        return counts[self.layers]

    def __len__(self) -> int:
        """Tokens that were counted."""
        return sum(tally.tokens for tally in self._tallies)

    def __repr__(self) -> str:
        return f"Counters({len(self)} tokens, {len(self.layers)} layers)"

    def plot(self, **options: Any) -> Any:
        """A heatmap of layers and experts (needs matplotlib); see `moekit.analysis.plots`."""
        from importlib import import_module

        return import_module("moekit.analysis.plots").load_heatmap(self, **options)
