"""How often every expert of every layer was used, counted while a model runs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _core
from .ops import Assignment

if TYPE_CHECKING:
    from .nn.batch import Batch

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


class Counters:
    """The load of each layer's experts: what `model.record(counters=True)` fills.

    `layers` are the model's own numbers, `num_experts` [layers] the experts each has. A pass is
    counted when it is complete, all layers in one call; one that is interrupted is not.
    """

    def __init__(self, layers: npt.ArrayLike, num_experts: npt.ArrayLike) -> None:
        self.layers: Ints = np.asarray(layers, np.int32)
        self.num_experts: Ints = np.asarray(num_experts, np.int32)
        self._counts: Longs = np.zeros(
            (len(self.layers), int(self.num_experts.max(initial=0))), np.int64
        )
        self._places = {int(n): row for row, n in enumerate(self.layers)}
        self._tokens = 0

    def end_pass(self, batch: "Batch", choices: Mapping[int, Assignment]) -> None:
        """Count what the layers of a complete pass over `batch` chose."""
        self._tokens += len(batch.ids)
        rows = [self._places[layer] for layer in choices]
        _core.count_experts([chosen.experts for chosen in choices.values()], rows, self._counts)

    @property
    def counts(self) -> Longs:
        """int64 [layers, E]: how many tokens each expert served."""
        return self._counts.copy()

    def __len__(self) -> int:
        """Tokens that were counted."""
        return self._tokens

    def __repr__(self) -> str:
        return f"Counters({self._tokens} tokens, {len(self.layers)} layers)"

    def plot(self, **options: Any) -> Any:
        """A heatmap of layers and experts (needs matplotlib); see `moekit.analysis.plots`."""
        from importlib import import_module

        return import_module("moekit.analysis.plots").load_heatmap(self, **options)
