"""Quantising one layer, with or without the inputs that its weights have seen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..nn import MLP, MoE
from ..nn.parts import replaced
from ..nn.types import Floats
from ..ops import Experts, PackedWeight
from .layerwise import (
    ExpertInputs,
    LinearInputs,
    feed_forwards,
    gram,
    hidden_of,
    identity_of,
)
from .notes import Matrix, Notes
from .recipe import Place, Recipe
from .rounding import Hessian, Options, Rounded, one_or_all, round_matrix


@dataclass(slots=True)
class Inputs:
    """What a layer's weights have seen; empty without calibration."""

    linears: Mapping[int, LinearInputs] = field(default_factory=dict)
    feeds: Mapping[int, ExpertInputs] = field(default_factory=dict)

    def of(self, part: MoE | MLP) -> ExpertInputs:
        """What a feed-forward part has seen."""
        return self.feeds.get(id(part), ExpertInputs())


class BlockQuantiser:
    """Follows a recipe through the packed weights of one part of a model.

    `done` is told of each matrix that is finished.
    """

    def __init__(
        self, recipe: Recipe, options: Options, notes: Notes, done: Callable[[int], None]
    ) -> None:
        self._recipe = recipe
        self._done = done
        self._options = options
        self._notes = notes

    def __call__(self, part: Any, places: list[Place], inputs: Inputs) -> Any:
        """`part` with the weights of `places` quantised."""
        by_id = {id(place.weight): place for place in places}
        changes: dict[int, Any] = {}
        for ffn in feed_forwards(part):
            seen = inputs.of(ffn)
            if (inputs.linears or inputs.feeds) and not seen.parts:
                # A family's own kind of mixture, whose experts' inputs are not those of the layer.
                bank = next((p for p in places if p.weight is ffn.experts.up), None)
                if bank is not None and bank.routed:
                    lost = [(bank.layer, expert, 0) for expert in range(bank.experts)]
                    self._notes.fallbacks += lost
            self._experts(ffn.experts, by_id, seen, changes)
            if isinstance(ffn, MoE) and ffn.shared is not None:
                self._experts(ffn.shared, by_id, one_for_all(seen), changes)
        for place in places:
            if id(place.weight) not in changes:
                self._matrices(place, inputs.linears.get(id(place.weight)), changes)
        return replaced(part, changes)

    def _matrices(self, place: Place, inputs: LinearInputs | None, changes: dict[int, Any]) -> None:
        """A weight that is multiplied by itself: a linear layer, or heads that are banks."""
        formats = self._recipe.formats(place)
        if formats == _formats_of(place):
            self._keep(place)
            return
        packed = PackedWeight.empty(one_or_all(formats), place.weight.shape)
        tokens = 0 if inputs is None else inputs.rows
        hessian = None
        if inputs is not None and tokens:
            hessian = Hessian(inputs.hessian, self._options)
        for slot in range(place.experts):
            values = place.weight.unpack_expert(slot)
            result = round_matrix(packed, slot, values, hessian, self._options)
            self._note(place, packed, slot, result, tokens if hessian is not None else 0)
        changes[id(place.weight)] = packed

    def _experts(
        self,
        experts: Experts,
        by_id: Mapping[int, Place],
        inputs: ExpertInputs,
        changes: dict[int, Any],
    ) -> None:
        """The three banks of a feed-forward layer, expert by expert."""
        banks = {
            name: by_id[id(weight)]
            for name in ("gate", "up", "down")
            if (weight := getattr(experts, name)) is not None and id(weight) in by_id
        }
        targets: dict[str, PackedWeight] = {}
        for name, place in banks.items():
            formats = self._recipe.formats(place)
            if formats == _formats_of(place):
                self._keep(place)
            else:
                targets[name] = PackedWeight.empty(one_or_all(formats), place.weight.shape)
        changes.update({id(banks[name].weight): packed for name, packed in targets.items()})
        if not targets:
            return
        identity = identity_of(experts) if inputs.parts and "down" in targets else None
        counts = inputs.counts(experts.count)
        for expert in range(experts.count):
            tokens = int(counts[expert])
            x, weights = self._rows_for(inputs, expert, tokens, banks)
            # Gate and up read the same, so the factor of their inputs is made once.
            wide = Hessian(gram(x, weights), self._options) if len(x) else None
            for name in ("gate", "up"):
                if name in targets:
                    self._round(banks[name], targets[name], expert, wide, len(x))
            if "down" in targets:
                tall = None
                if identity is not None and len(x):
                    # With gate and up as they are by now: that is what down will really get.
                    hidden = hidden_of(experts, expert, x, identity, targets)
                    tall = Hessian(gram(hidden, weights), self._options)
                self._round(banks["down"], targets["down"], expert, tall, len(x))

    def _rows_for(
        self, inputs: ExpertInputs, expert: int, tokens: int, banks: Mapping[str, Place]
    ) -> tuple[Floats, Floats]:
        """The inputs that calibrate an expert; none, and a note of it, where they are too few."""
        nothing = np.zeros((0, 0), np.float32), np.zeros(0, np.float32)
        if not inputs.parts:
            return nothing
        if self._options.all_experts:
            x = inputs.x
            return x, np.ones(len(x), np.float32)
        place = next(iter(banks.values()))
        if tokens < self._options.min_tokens:
            if place.routed:
                self._notes.fallbacks.append((place.layer, expert, tokens))
            return nothing
        return inputs.rows_of(expert)

    def _round(
        self, place: Place, packed: PackedWeight, slot: int, hessian: Hessian | None, tokens: int
    ) -> None:
        values = place.weight.unpack_expert(slot)
        result = round_matrix(packed, slot, values, hessian, self._options)
        self._note(place, packed, slot, result, tokens)

    def _note(
        self, place: Place, packed: PackedWeight, slot: int, result: Rounded, tokens: int
    ) -> None:
        self._done(1)
        single = len(place.weight.shape) == 2
        self._notes.matrices.append(
            Matrix(
                place.path,
                place.role,
                -1 if single else slot,
                packed.expert_format(slot),
                result.method,
                tokens,
                result.error,
                packed.expert_nbytes(slot),
            )
        )

    def _keep(self, place: Place) -> None:
        for slot in range(place.experts):
            self._note(place, place.weight, slot, Rounded("kept", 0.0), 0)


def _formats_of(place: Place) -> list[str]:
    return [place.weight.expert_format(e) for e in range(place.experts)]


def one_for_all(inputs: ExpertInputs) -> ExpertInputs:
    """The same rows, each for the one expert that serves everybody."""
    everyone = ExpertInputs()
    for x, assignment in inputs.parts:
        first = np.zeros((len(x), 1), np.int32)
        everyone.add(x, type(assignment)(first, np.ones((len(x), 1), np.float32)))
    return everyone
