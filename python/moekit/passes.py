"""The choices of forward passes: kept as they come, laid out as tables many passes at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .ops.router_rules import margins_of, selection_scores

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
# What one layer chose: its number, experts and weights [T, K], do the weights scale the inputs?
# Arrays and not assignments, which hold on to the logits that they were made from.
Choice: TypeAlias = tuple[int, Ints, Floats, bool]


@dataclass(slots=True)
class Pass:
    """One forward pass: `lengths[i]` rows of the sequence that a record calls `numbers[i]`.

    `logits` are kept where they, or margins not yet made of them, are asked for. `rules` are the
    keywords of `ops.route` by layer, which say what the margins are differences of; all passes of
    one recording share them.
    """

    numbers: Sequence[int]
    lengths: Sequence[int]
    positions: npt.NDArray[Any]
    ids: Ints
    policy: str
    choices: Sequence[Choice]
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
    found: dict[int, dict[tuple[int, bool, bool], list[tuple[int, Choice]]]] = {}
    k = 0
    for i, one in enumerate(passes):
        for choice in one.choices:
            layer, width = choice[0], choice[1].shape[1]
            k = max(k, width)
            kind = width, layer in one.logits, layer in one.margins
            found.setdefault(layer, {}).setdefault(kind, []).append((i, choice))
    experts = np.full((int(sum(tokens)), len(layers), k), -1, np.int32)
    weights = np.zeros(experts.shape, np.float32)
    logits = np.full((*experts.shape[:2], most), np.nan, np.float32) if "logits" in kept else None
    margins = np.full(experts.shape[:2], np.nan, np.float32) if "margins" in kept else None
    for place, layer in enumerate(layers):
        for (width, has_logits, has_margins), which in found.get(layer, {}).items():
            at: Any = slice(None)
            if len(which) < len(passes):
                at = np.concatenate([np.arange(ends[i] - tokens[i], ends[i]) for i, _ in which])
            chosen = np.concatenate([choice[1] for _, choice in which])
            experts[at, place, :width] = chosen
            weights[at, place, :width] = np.concatenate([choice[2] for _, choice in which])
            if has_logits:
                values = np.concatenate([passes[i].logits[layer] for i, _ in which])
                if logits is not None:
                    logits[at, place, : values.shape[1]] = values
                if margins is not None and layer in passes[0].rules:
                    margins[at, place] = rank_margins(passes[0].rules[layer], values, chosen)
            if margins is not None and has_margins:
                margins[at, place] = np.concatenate([passes[i].margins[layer] for i, _ in which])
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
        frozenset(layer for one in passes for layer, _, _, on_input in one.choices if on_input),
    )
