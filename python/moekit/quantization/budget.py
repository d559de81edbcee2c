"""Formats under a budget of bytes: the next byte goes where it takes most error away.

The error of a matrix in a format is measured: the power of (Ŵ - W) x over the calibration inputs
that it saw, an expert's inputs times the router's weights, so that it grows with the expert's share
of the routing. What such an error costs the model is measured too: for each layer and role, all of
its matrices are rounded, nothing else, and the divergence of the model's predictions over the sum
of their errors is the price of one unit of error. Matrices whose inputs are not seen are a group of
their own: their errors, over unit vectors, do not compare with the others. Prices make layers and
roles comparable; that divergence is proportional to small errors is second-order theory (the
gradient of the divergence vanishes at the unquantised model).

Greedy over the lower convex hulls of (bytes, predicted divergence) is optimal for the relaxed
knapsack; what is lost is at most the last step.
"""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from .. import ops
from ..nn import Model, MoE
from ..nn.block import Layer
from ..nn.parts import replaced
from ..nn.types import Floats
from ..ops import Experts, PackedWeight
from ..saving.bar import Bar
from .blocks import Inputs, one_for_all
from .layerwise import (
    Doubles,
    ExpertInputs,
    Stream,
    feed_forwards,
    gram,
    hidden_of,
    identity_of,
    tapped,
)
from .recipe import Place, Recipe, bits_of, elements, packed_size, places_of
from .rounding import Options, output_power

DEFAULT_CANDIDATES = (
    "int2",
    "int2_g32",
    "int3",
    "int3_g32",
    "int4",
    "int4_g32",
    "int8",
    "bf16",
)
_ROLES = ("gate_up", "down", "shared", "dense", "attention")
# Tokens that the price of errors is measured with, fewer where their logits would fill the memory.
_PRICE_TOKENS = 2048
_PRICE_LOGITS = 1 << 27
# Rows of logits that are in float64 at once.
_ROWS = 64
# Below this, a budget is bits per weight.
_LARGEST_BITS = 32


@dataclass(slots=True)
class Unit:
    """Matrices that get one format: an expert's gate and up, its down, or a whole weight.

    `errors` and `nbytes` are those in each candidate.
    """

    places: tuple[Place, ...]
    slots: tuple[int, ...]
    group: tuple[int, str]
    errors: list[float]
    nbytes: list[int]

    def add(self, values: Floats, hessian: Doubles, candidates: Sequence[str]) -> None:
        """The error of one more matrix."""
        for i, name in enumerate(candidates):
            rounded = ops.pack(values, format=name).unpack()
            self.errors[i] += output_power(rounded - values, hessian)
            self.nbytes[i] += ops.packed_bytes(name, *values.shape)


def within_budget(
    model: Model,
    recipe: Recipe,
    windows: Sequence[npt.NDArray[np.int32]],
    options: Options,
    progress: bool | None = None,
) -> Recipe:
    """The recipe with formats for everything that it left to the budget.

    ValueError where not even the smallest candidates fit.
    """
    candidates = _candidates(recipe)
    places = [place for place in places_of(model) if place.role in _ROLES]
    free = [place for place in places if _is_free(recipe, place)]
    fixed = [place for place in places if not _is_free(recipe, place)]
    assert recipe.budget is not None
    budget = recipe.budget
    if budget < _LARGEST_BITS:
        budget = budget * sum(map(elements, places)) / 8
    budget -= sum(packed_size(place, recipe.formats(place)) for place in fixed)
    with Bar("measuring", len(model.layers), progress, " layers") as bar:
        units = _measured(model, free, windows, candidates, options, bar)
    with Bar("pricing", len({unit.group for unit in units}), progress, " groups") as bar:
        prices = _prices(model, units, windows, candidates, bar)
    chosen = choose(
        [[e * prices[unit.group] for e in unit.errors] for unit in units],
        [unit.nbytes for unit in units],
        budget,
    )
    patterns = []
    for unit, index in zip(units, chosen, strict=True):
        for place, slot in zip(unit.places, unit.slots, strict=True):
            name = f"{place.path}.{slot}" if len(place.weight.shape) == 3 else place.path
            patterns.append((name, candidates[index]))
    return Recipe(
        recipe.format,
        recipe.roles,
        (*patterns, *recipe.patterns),
        recipe.experts,
        None,
        force=recipe.force,
    )


def _candidates(recipe: Recipe) -> list[str]:
    known = ops.format_names()
    names = list(recipe.candidates) or [name for name in DEFAULT_CANDIDATES if name in known]
    return sorted(names, key=bits_of)


def _is_free(recipe: Recipe, place: Place) -> bool:
    roles = {place.role, "experts"} if place.routed else {place.role}
    named = [place.path, *(f"{place.path}.{e}" for e in range(place.experts))]
    by_pattern = any(fnmatchcase(name, p) for p, _ in recipe.patterns for name in named)
    by_expert = place.routed and any(layer == place.layer for layer, _ in recipe.experts)
    return not (roles & recipe.roles.keys() or by_pattern or by_expert)


def choose(
    costs: Sequence[Sequence[float]], nbytes: Sequence[Sequence[int]], budget: float
) -> list[int]:
    """The candidate of each unit, by the steepest descent of the sum of costs within `budget`."""
    hulls = [_hull(c, b) for c, b in zip(costs, nbytes, strict=True)]
    spent = sum(nbytes[i][hull[0]] for i, hull in enumerate(hulls))
    if spent > budget:
        raise ValueError(
            f"[quantize] a budget of {budget:.0f} bytes; the smallest candidates take {spent}"
        )
    at = [0] * len(hulls)
    queue: list[tuple[float, int]] = []

    def push(unit: int) -> None:
        hull, step = hulls[unit], at[unit]
        if step + 1 < len(hull):
            here, there = hull[step], hull[step + 1]
            gain = costs[unit][here] - costs[unit][there]
            heapq.heappush(queue, (-gain / (nbytes[unit][there] - nbytes[unit][here]), unit))

    for unit in range(len(hulls)):
        push(unit)
    while queue:
        _, unit = heapq.heappop(queue)
        here, there = hulls[unit][at[unit]], hulls[unit][at[unit] + 1]
        more = nbytes[unit][there] - nbytes[unit][here]
        if spent + more <= budget:  # else a cheaper step of another unit may still fit
            spent += more
            at[unit] += 1
            push(unit)
    return [hull[step] for hull, step in zip(hulls, at, strict=True)]


def _hull(costs: Sequence[float], nbytes: Sequence[int]) -> list[int]:
    """Candidates on the lower convex hull of (bytes, cost), the cheapest in bytes first."""
    order = sorted(range(len(costs)), key=lambda i: (nbytes[i], costs[i]))
    hull: list[int] = []
    for i in order:
        if hull and (nbytes[i] == nbytes[hull[-1]] or costs[i] >= costs[hull[-1]]):
            continue
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            rise = (costs[b] - costs[a]) * (nbytes[i] - nbytes[a])
            if rise < (costs[i] - costs[a]) * (nbytes[b] - nbytes[a]):
                break
            hull.pop()
        hull.append(i)
    return hull


# -- measuring -----------------------------------------------------------------------------


def _measured(
    model: Model,
    places: list[Place],
    windows: Sequence[npt.NDArray[np.int32]],
    candidates: list[str],
    options: Options,
    bar: Bar,
) -> list[Unit]:
    by_id = {id(place.weight): place for place in places}
    stream = Stream(model, windows)
    units: list[Unit] = []
    for n, block in enumerate(model.layers):
        tap, linears, feeds = tapped(block)
        states = stream.through(tap, n)
        units += _of_block(block, n, by_id, Inputs(linears, feeds), candidates, options)
        stream.states = states
        bar.advance(1)
    return units


def _of_block(
    block: Layer,
    layer: int,
    by_id: dict[int, Place],
    inputs: Inputs,
    candidates: list[str],
    options: Options,
) -> list[Unit]:
    units: list[Unit] = []
    done: set[int] = set()
    groups = []
    for ffn in feed_forwards(block):
        groups.append((ffn.experts, inputs.of(ffn)))
        if isinstance(ffn, MoE) and ffn.shared is not None:
            groups.append((ffn.shared, one_for_all(inputs.of(ffn))))
    for experts, seen in groups:
        units += _of_experts(experts, by_id, seen, candidates, options)
        done |= {id(w) for w in (experts.gate, experts.up, experts.down) if w is not None}
    for key, place in by_id.items():
        if place.layer != layer or key in done:
            continue
        found = inputs.linears.get(key)
        slots = tuple(range(place.experts))
        unit = _unit((place,) * place.experts, slots, len(candidates), found is not None)
        for slot in range(place.experts):
            values = place.weight.unpack_expert(slot)
            hessian = np.eye(values.shape[1]) if found is None else found.hessian
            unit.add(values, hessian, candidates)
        units.append(unit)
    return units


def _of_experts(
    experts: Experts,
    by_id: dict[int, Place],
    seen: ExpertInputs,
    candidates: list[str],
    options: Options,
) -> list[Unit]:
    """Two units an expert: gate and up, which are read together, and down."""
    units: list[Unit] = []
    identity = identity_of(experts)
    for expert in range(experts.count):
        x, weights = np.zeros((0, experts.hidden), np.float32), np.zeros(0, np.float32)
        if seen.parts:
            x, weights = seen.rows_of(expert)
            if options.all_experts:
                x = seen.x
                weights = np.ones(len(x), np.float32)
        hidden = hidden_of(experts, expert, x, identity, {})
        unknown = not seen.parts  # then weights count as they are
        for names, rows in ((("gate", "up"), x), (("down",), hidden)):
            weights_of = [getattr(experts, n) for n in names if getattr(experts, n) is not None]
            found = tuple(by_id[id(weight)] for weight in weights_of if id(weight) in by_id)
            if not found:
                continue
            unit = _unit(found, (expert,) * len(found), len(candidates), not unknown)
            width = found[0].weight.shape[-1]
            hessian = np.eye(width) if unknown else gram(rows, weights)
            for place in found:
                unit.add(place.weight.unpack_expert(expert), hessian, candidates)
            units.append(unit)
    return units


def _unit(places: tuple[Place, ...], slots: tuple[int, ...], candidates: int, seen: bool) -> Unit:
    # Errors over unit vectors are no errors over inputs: such matrices have a price of their own.
    group = places[0].layer, places[0].role if seen else f"{places[0].role}, inputs unknown"
    return Unit(places, slots, group, [0.0] * candidates, [0] * candidates)


def _prices(
    model: Model,
    units: Sequence[Unit],
    windows: Sequence[npt.NDArray[np.int32]],
    candidates: list[str],
    bar: Bar,
) -> dict[tuple[int, str], float]:
    """(layer, role) -> divergence for each unit of error."""
    probe = len(candidates) // 2
    wanted_tokens = max(1, min(_PRICE_TOKENS, _PRICE_LOGITS // model.vocab_size))
    sample, tokens = [], 0
    for window in windows:
        if tokens < wanted_tokens:
            sample.append(window)
            tokens += len(window)
    full = [model.logits([ids]) for ids in sample]
    groups: dict[tuple[int, str], list[Unit]] = defaultdict(list)
    for unit in units:
        groups[unit.group].append(unit)
    prices = {}
    for group, members in groups.items():
        error = sum(unit.errors[probe] for unit in members)
        changes = {}
        for place in {id(p): p for unit in members for p in unit.places}.values():
            packed = PackedWeight.empty(candidates[probe], place.weight.shape)
            for slot in range(place.experts):
                packed.fill(slot, place.weight.unpack_expert(slot))
            changes[id(place.weight)] = packed
        rounded = replaced(model, changes)
        total = sum(
            float(divergences(wanted, rounded.logits([ids])).sum())
            for ids, wanted in zip(sample, full, strict=True)
        )
        prices[group] = max(total, 0.0) / error if error > 0 else 0.0
        bar.advance(1)
    return prices


def divergences(wanted: Floats, got: Floats) -> Doubles:
    """KL in nats of each row of logits [T, V]: float64 [T]."""
    found = np.empty(len(wanted))
    for begin in range(0, len(wanted), _ROWS):
        rows = slice(begin, begin + _ROWS)
        p, q = log_softmax(wanted[rows]), log_softmax(got[rows])
        found[rows] = (np.exp(p) * (p - q)).sum(axis=-1)
    return found


def log_softmax(logits: Floats) -> Doubles:
    """Float64 log-probabilities along the last axis."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide
