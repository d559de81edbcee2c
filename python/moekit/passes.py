"""The choices of one forward pass, kept as they come and laid out as tables afterwards."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .ops import Assignment

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


class Pass:
    """The tokens of one forward pass while they are being routed, layer after layer."""

    __slots__ = (
        *("choices", "ids", "logits", "margins", "on_input", "policy", "positions", "sequences"),
    )

    def __init__(self, sequences: Ints, positions: Ints, ids: Ints, policy: str) -> None:
        self.sequences = sequences
        self.positions = positions
        self.ids = ids
        self.policy = policy
        # Arrays and not assignments, which hold on to the logits that they were made from.
        self.choices: dict[int, tuple[Ints, Floats]] = {}
        self.logits: dict[int, Floats] = {}
        self.margins: dict[int, Floats] = {}
        self.on_input: list[int] = []

    def add(
        self,
        layer: int,
        assignment: Assignment,
        logits: Floats | None,
        margins: Floats | None = None,
    ) -> None:
        """One layer's choice."""
        self.choices[layer] = assignment.experts, assignment.weights
        if assignment.on_input:
            self.on_input.append(layer)
        if logits is not None:
            self.logits[layer] = logits
        if margins is not None:
            self.margins[layer] = margins

    def slots(self) -> int:
        """The largest K."""
        return max((experts.shape[1] for experts, _ in self.choices.values()), default=0)

    def table(self, layers: Sequence[int], k: int) -> tuple[Ints, Floats]:
        """experts and weights [tokens, layers, k]; empty where a layer was not run."""
        experts = np.full((len(self.ids), len(layers), k), -1, np.int32)
        weights = np.zeros(experts.shape, np.float32)
        for place, layer in enumerate(layers):
            if layer in self.choices:
                chosen, amounts = self.choices[layer]
                experts[:, place, : chosen.shape[1]] = chosen
                weights[:, place, : chosen.shape[1]] = amounts
        return experts, weights

    def logit_table(self, layers: Sequence[int], most: int) -> Floats:
        """[tokens, layers, most], NaN where there are none."""
        table = np.full((len(self.ids), len(layers), most), np.nan, np.float32)
        for place, layer in enumerate(layers):
            if layer in self.logits:
                table[:, place, : self.logits[layer].shape[1]] = self.logits[layer]
        return table

    def margin_table(self, layers: Sequence[int]) -> Floats:
        """[tokens, layers], NaN where there are none."""
        table = np.full((len(self.ids), len(layers)), np.nan, np.float32)
        for place, layer in enumerate(layers):
            if layer in self.margins:
                table[:, place] = self.margins[layer]
        return table
