"""How often every expert of every layer was used: counted while a model runs, for a microsecond or
two a layer and pass."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]

# Choices that are kept before they are counted: many at once cost next to nothing, and few enough
# that what they hold stays in the cache.
_FOLD_TOKENS = 4096
_FOLD_PASSES = 64


class Counters:
    """The load of each layer's experts: what `model.record(counters=True)` fills.

    `layers` are the model's own numbers, `num_experts` [layers] the experts each has. A pass only
    leaves references to its choices here; they are counted some dozen passes at a time.
    """

    def __init__(self, layers: npt.ArrayLike, num_experts: npt.ArrayLike) -> None:
        self.layers: Ints = np.asarray(layers, np.int32)
        self.num_experts: Ints = np.asarray(num_experts, np.int32)
        self._counts: Longs = np.zeros(
            (len(self.layers), int(self.num_experts.max(initial=0))), np.int64
        )
        self._place = {int(n): i for i, n in enumerate(self.layers)}
        self._tokens = 0
        self._running: list[tuple[int, Ints]] = []
        self._finished: list[tuple[int, Ints]] = []
        self._waiting_tokens = 0
        self._waiting_passes = 0

    def add(self, choice: tuple[int, Ints]) -> None:
        """(layer, experts) of one layer in the running pass."""
        self._running.append(choice)

    def end_pass(self, tokens: int) -> None:
        """The pass is complete; one that was interrupted is not counted."""
        self._finished += self._running
        self._tokens += tokens
        self._waiting_tokens += tokens
        self._waiting_passes += 1
        if self._waiting_tokens > _FOLD_TOKENS or self._waiting_passes > _FOLD_PASSES:
            self._fold()

    def begin_pass(self) -> Callable[[tuple[int, Ints]], None]:
        """Forget what an interrupted pass has left; gives what takes (layer, experts)."""
        self._running = []
        return self._running.append

    def _fold(self) -> None:
        finished, self._finished = self._finished, []
        self._waiting_tokens = self._waiting_passes = 0
        by_layer: dict[int, list[Ints]] = {layer: [] for layer in self._place}
        for layer, experts in finished:
            by_layer[layer].append(experts)
        for layer, parts in by_layer.items():
            if not parts:
                continue
            chosen = np.concatenate(parts, axis=None)
            self._counts[self._place[layer]] += np.bincount(
                chosen[chosen >= 0], minlength=self._counts.shape[1]
            )

    @property
    def counts(self) -> Longs:
        """int64 [layers, E]: how many tokens each expert served."""
        self._fold()
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
