"""Activation-aware scaling (Lin et al., arXiv 2306.00978), folded into what stands before.

Columns of a matrix whose inputs are large are multiplied by s and their inputs divided by it, so
that rounding costs less where it matters. Inputs of gate, up and router are divided in the norm
before them; those of an expert's down matrix in the rows of its up matrix. All s are powers of two:
before rounding, the scaled layer computes the same bytes as the one it came from, its router too.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .. import ops
from ..nn import MLP, Block, MoE, RMSNorm
from ..nn.parts import replaced
from ..nn.types import Floats
from ..ops import Experts, PackedWeight
from .blocks import Inputs, one_for_all
from .layerwise import Doubles, ExpertInputs, gram, hidden_of, identity_of
from .recipe import Place, Recipe
from .rounding import output_power

# Exponents of the mean input that are tried (section 3.2); 0 is no scaling.
_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Experts whose errors decide about the inputs that all experts share: those with most tokens.
_JUDGES = 8
# Scaling by a power of two is exact in these.
_WIDE = ("f32", "bf16")


def scaled(
    block: Block, inputs: Inputs, places: list[Place], recipe: Recipe
) -> tuple[Block, Inputs, list[Place]]:
    """The layer with its feed-forward part scaled, its inputs, and its places.

    What cannot be folded exactly stays as it is: the inputs of gate and up where the norm before
    them serves others too, and those of down where up does not enter linearly.
    """
    ffn = block.ffn
    if type(ffn) not in (MoE, MLP):
        return block, inputs, places
    by_id = {id(place.weight): place for place in places}
    changes: dict[int, Any] = {}
    seen = inputs.of(ffn)
    groups = [(ffn.experts, seen)]
    shared = ffn.shared if isinstance(ffn, MoE) else None
    if shared is not None:
        groups.append((shared, one_for_all(seen)))
    factors = _norm_factors(block, groups, by_id, recipe)
    for experts, rows in groups:
        _scale_experts(experts, rows, factors, by_id, recipe, changes)
    if (factors != 1).any():
        norm = block.ffn_norm
        assert isinstance(norm, RMSNorm) and norm.weight is not None
        changes[id(norm.weight)] = norm.weight / factors
        for linear in _readers(ffn):
            changes[id(linear.weight)] = _packed_like(
                linear.weight, linear.weight.unpack_expert(0) * factors
            )
    result: Block = replaced(block, changes)
    moved = [replace(p, weight=changes.get(id(p.weight), p.weight)) for p in places]
    divided = ExpertInputs([(x / factors, assignment) for x, assignment in seen.parts])
    return result, Inputs(inputs.linears, {id(result.ffn): divided}), moved


def _readers(ffn: MoE | MLP) -> list[Any]:
    """Linear layers besides the experts that read the same input."""
    if not isinstance(ffn, MoE):
        return []
    gate = [] if ffn.gate is None else [ffn.gate.linear]
    return gate + ([] if ffn.shared_gate is None else [ffn.shared_gate])


def _norm_factors(
    block: Block,
    groups: list[tuple[Experts, ExpertInputs]],
    by_id: Mapping[int, Place],
    recipe: Recipe,
) -> Floats:
    """s for the inputs of gate and up, float32 [H]; ones where nothing can take them up."""
    norm, ffn = block.ffn_norm, block.ffn
    x = groups[0][1].x
    none = np.ones(x.shape[1], np.float32)
    plain = type(norm) is RMSNorm and norm.weight is not None
    plain = plain and getattr(norm, "offset", 0.0) == 0.0 and not block.parallel
    # A function in the router's place sees the input and could not be told.
    told = not isinstance(ffn, MoE) or (ffn.router is ffn.gate and not ffn.zero_experts)
    if not plain or not told:
        return none
    samples = []
    for experts, seen in groups:
        counts = seen.counts(experts.count)
        for expert in np.argsort(-counts, kind="stable")[:_JUDGES]:
            rows, weights = seen.rows_of(int(expert))
            if len(rows):
                samples.append((experts, int(expert), gram(rows, weights)))
    best, least = none, np.inf
    for factors in _candidates(x):
        error = sum(
            _rounding_error(getattr(experts, name), expert, factors, hessian, by_id, recipe)
            for experts, expert, hessian in samples
            for name in ("gate", "up")
            if getattr(experts, name) is not None
        )
        if error < least:
            best, least = factors, error
    return best


def _candidates(x: Floats) -> list[Floats]:
    size = np.abs(x).mean(axis=0, dtype=np.float64)
    if not np.isfinite(size).all() or not (size > 0).any():
        return [np.ones(x.shape[1], np.float32)]
    logs = np.log2(np.where(size > 0, size, size[size > 0].min()))
    logs -= logs.mean()
    return [np.exp2(np.round(exponent * logs)).astype(np.float32) for exponent in _EXPONENTS]


def _rounding_error(
    weight: PackedWeight,
    expert: int,
    factors: Floats,
    hessian: Doubles,
    by_id: Mapping[int, Place],
    recipe: Recipe,
) -> float:
    """What rounding the scaled matrix does to its outputs."""
    place = by_id.get(id(weight))
    if place is None:
        return 0.0
    values = weight.unpack_expert(expert)
    rounded = ops.pack(values * factors, format=recipe.formats(place)[expert]).unpack()
    return output_power(rounded / factors - values, hessian)


def _scale_experts(
    experts: Experts,
    seen: ExpertInputs,
    factors: Floats,
    by_id: Mapping[int, Place],
    recipe: Recipe,
    changes: dict[int, Any],
) -> None:
    """Gate and up times s of their inputs; up and down by factors of each expert's own."""
    linear = experts.activation != "swiglu_oai" and not experts.limit and experts.gate is not None
    banks = {n: getattr(experts, n) for n in ("gate", "up", "down") if getattr(experts, n)}
    new = {name: PackedWeight.empty(_wide(bank), bank.shape) for name, bank in banks.items()}
    identity = identity_of(experts)
    for expert in range(experts.count):
        own = np.ones(experts.inter, np.float32)
        rows, weights = seen.rows_of(expert)
        if linear and experts.up_bias is None and len(rows):
            hidden = hidden_of(experts, expert, rows, identity, {})
            hessian = gram(hidden, weights)
            own = min(
                _candidates(hidden),
                key=lambda s: _rounding_error(banks["down"], expert, s, hessian, by_id, recipe),
            )
        for name, bank in banks.items():
            values = bank.unpack_expert(expert)
            if name == "down":
                values = values * own
            else:
                values = values * factors
                if name == "up":
                    values = values / own[:, None]
            new[name].fill(expert, values)
    changes.update({id(banks[name]): weight for name, weight in new.items()})


def _wide(weight: PackedWeight) -> str:
    """A format that holds the scaled values exactly."""
    format = weight.format
    return format if isinstance(format, str) and format in _WIDE else "f32"


def _packed_like(weight: PackedWeight, values: Floats) -> PackedWeight:
    return ops.pack(values, format=_wide(weight))
