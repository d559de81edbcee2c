"""The choices of forward passes: kept as they come, laid out as tables many passes at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .ops.router_rules import margins_of, selection_scores

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(slots=True)
class Pass:
    """One forward pass: `lengths[i]` rows of the sequence that a record calls `numbers[i]`.

    `layers` have chosen `experts[j]` with `weights[j]` [T, K] (arrays and not assignments, which
    hold on to the logits that they were made from), which scale the inputs in `on_input` of them.
    `logits` are kept where they, or margins not yet made of them, are asked for. `rules` are the
    keywords of `ops.route` by layer, which say what the margins are differences of; all passes of
    one recording share them.
    """

    numbers: Sequence[int]
    lengths: Sequence[int]
    positions: npt.NDArray[Any]
    ids: Ints
    policy: str
    layers: tuple[int, ...]
    experts: Sequence[Ints]
    weights: Sequence[Floats]
    on_input: Sequence[int]
    logits: Mapping[int, Floats] = field(default_factory=dict)
    margins: Mapping[int, Floats] = field(default_factory=dict)
    rules: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a record's columns; `on_input` are layers whose weights scale the inputs."""

    experts: Ints
    weights: Floats
    sequences: Ints
    positions: Ints
    ids: Ints
    logits: Floats | None
    margins: Floats | None
    on_input: frozenset[int]


def rank_margins(rule: Mapping[str, Any], logits: Floats, experts: Ints) -> Floats:
    """float32 [T]: the least score of the chosen minus the largest of the others."""
    scores = selection_scores(logits, rule.get("score", "softmax"), rule.get("select_bias"))
    return margins_of(scores, experts)


def part_of(passes: Sequence[Pass], layers: Sequence[int], most: int, kept: Sequence[str]) -> Part:
    """The tables of some passes: -1, 0 and NaN where a layer was not run.

    `most` is the width of the logits; `kept` names which of "logits" and "margins" are wanted.
    """
    tokens = [len(one.ids) for one in passes]
    ends = np.cumsum(tokens)
    k = max((chosen.shape[1] for one in passes for chosen in one.experts), default=0)
    experts = np.full((int(sum(tokens)), len(layers), k), -1, np.int32)
    weights = np.zeros(experts.shape, np.float32)
    logits = np.full((*experts.shape[:2], most), np.nan, np.float32) if "logits" in kept else None
    margins = np.full(experts.shape[:2], np.nan, np.float32) if "margins" in kept else None
    places = {layer: place for place, layer in enumerate(layers)}
    for which, j in _alike(passes):
        some = [passes[i] for i in which]
        layer, first = some[0].layers[j], some[0].experts[j]
        place, width = places[layer], first.shape[1]
        at: Any = slice(None)
        if len(which) < len(passes):
            at = np.concatenate([np.arange(ends[i] - tokens[i], ends[i]) for i in which])
        chosen = np.concatenate([one.experts[j] for one in some])
        experts[at, place, :width] = chosen
        weights[at, place, :width] = np.concatenate([one.weights[j] for one in some])
        if layer in some[0].logits:
            values = np.concatenate([one.logits[layer] for one in some])
            if logits is not None:
                logits[at, place, : values.shape[1]] = values
            if margins is not None and layer in some[0].rules:
                margins[at, place] = rank_margins(some[0].rules[layer], values, chosen)
        if margins is not None and layer in some[0].margins:
            margins[at, place] = np.concatenate([one.margins[layer] for one in some])
    return Part(
        experts,
        weights,
        np.repeat(
            np.array([number for one in passes for number in one.numbers], np.int32),
            [length for one in passes for length in one.lengths],
        ),
        np.concatenate([one.positions for one in passes]).astype(np.int32),
        np.concatenate([one.ids for one in passes]),
        logits,
        margins,
        frozenset(layer for one in passes for layer in one.on_input),
    )


def _alike(passes: Sequence[Pass]) -> Iterator[tuple[list[int], int]]:
    """Passes that ran the same layers, and the place of a layer where they have one width."""
    kinds: dict[Any, list[int]] = {}
    for i, one in enumerate(passes):
        kinds.setdefault((one.layers, tuple(one.logits), tuple(one.margins)), []).append(i)
    for which in kinds.values():
        for j in range(len(passes[which[0]].layers)):
            widths = {passes[i].experts[j].shape[1] for i in which}
            if len(widths) == 1:
                yield which, j
                continue
            for width in widths:
                yield [i for i in which if passes[i].experts[j].shape[1] == width], j
