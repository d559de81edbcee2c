"""Changing which experts a model has: prune, merge, replace by a constant, assemble.

    scores = mk.edit.importance(model, texts, by="reap")
    smaller = mk.edit.prune(model, {1: 16, 2: 24, 3: 24, 4: 16}, scores)
    mixed = mk.assemble(base, {3: [(code, 3, 0), (prose, 3, 0)]}, k=1)
    mk.quant_report(model, smaller, texts)       # what it did, as for quantised models

Nothing is copied: banks of the new model read the memory of those they were put together from
(`PackedWeight.gather`), and the given models stay as they were. A new model says in
`expert_origin` which expert of the old one became which. It is saved by `mk.quantize(model, {},
out=...)` in moekit's own layout; other layouts have one number of experts for all layers. Assembled
models are not saved: their layers are not those that the configuration tells of.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from . import ops
from .nn import Experts, Linear, Model, MoE, Router
from .nn.parts import rebuilt
from .nn.types import Floats
from .ops import Assignment, PackedWeight
from .quantization.layerwise import WINDOW, ExpertInputs, Stream, Texts, tapped, windows_of
from .saving.bar import Bar

Scores: TypeAlias = Mapping[int, npt.NDArray[np.float64]]
# (model, layer, expert): where an expert is to be taken from; a dense layer has one, number 0.
Source: TypeAlias = tuple[Model, int, int]
MEASURES = ("frequency", "weight", "reap")


def importance(
    model: Model,
    texts: Texts,
    by: str = "reap",
    *,
    window: int = WINDOW,
    progress: bool | None = None,
) -> dict[int, npt.NDArray[np.float64]]:
    """layer -> float64 [E]: how much each expert does on `texts`.

    `frequency`: the share of slots. `weight`: the mean over all tokens of the router's weight.
    `reap`: the mean over an expert's own tokens of weight · ‖output‖ (Lasby et al., arXiv
    2510.13999, router-weighted expert activation). An expert without tokens has 0. `progress`: a
    bar on stderr; None shows it on a terminal after two seconds.
    """
    if by not in MEASURES:
        raise ValueError(f"[importance] by {by!r}; one of {', '.join(MEASURES)} is required")
    stream = Stream(model, windows_of(model, texts, window))
    found = {}
    with Bar("importance", len(model.layers), progress, " layers") as bar:
        for n, block in enumerate(model.layers):
            tap, _, feeds = tapped(block)
            stream.states = stream.through(tap, n)
            if block.moe is not None:
                found[n] = _scores(block.moe, _inputs_of(block.moe, feeds, n), by)
            bar.advance(1)
    return found


def _inputs_of(moe: MoE, feeds: Mapping[int, ExpertInputs], layer: int) -> ExpertInputs:
    if id(moe) not in feeds:
        raise ValueError(
            f"[edit] the inputs of {type(moe).__name__}'s experts in layer {layer} are not known; "
            "an MoE is required"
        )
    return feeds[id(moe)]


def _scores(moe: MoE, seen: ExpertInputs, by: str) -> npt.NDArray[np.float64]:
    count = moe.experts.count
    counts = seen.counts(count).astype(np.float64)
    total: npt.NDArray[np.float64] = np.zeros(count)
    if by == "frequency":
        total += counts / max(counts.sum(), 1.0)
        return total
    tokens = 0
    for x, assignment in seen.parts:
        tokens += len(x)
        token, slot = np.nonzero((assignment.experts >= 0) & (assignment.experts < count))
        expert = assignment.experts[token, slot]
        amount = assignment.weights[token, slot].astype(np.float64)
        if by == "reap":
            y = _outputs(moe.experts, x[token], expert, assignment, amount)
            amount = np.linalg.norm(y.astype(np.float64), axis=1) * (
                1.0 if assignment.on_input else amount
            )
        total += np.bincount(expert, amount, count)
    total /= max(tokens, 1) if by == "weight" else np.maximum(counts, 1.0)
    return total


def _outputs(
    experts: Experts,
    rows: Floats,
    expert: npt.NDArray[np.int32],
    assignment: Assignment,
    amount: npt.NDArray[np.float64],
) -> Floats:
    """What each row's own expert gives, unweighted (a router's scale on inputs apart)."""
    if assignment.on_input:
        rows = rows * amount[:, None].astype(np.float32)
    chosen = np.ascontiguousarray(expert[:, None])
    return ops.moe_ffn(rows, Assignment(chosen, np.ones(chosen.shape, np.float32)), experts)


# -- fewer experts -------------------------------------------------------------------------


def prune(
    model: Model,
    keep: int | Mapping[int, int | Sequence[int]],
    scores: Scores | None = None,
) -> Model:
    """The model without the experts of least importance.

    `keep`: how many remain in each layer, or layer -> how many or which; other layers stay whole.
    The router forgets the others: its softmax and its normalisation run over those that remain.
    `scores` (see `importance`) are needed where numbers are given; ties go to the lower expert.

    ValueError for layers without experts, for fewer than the router chooses, for router groups
    that would not remain equally large.
    """
    wishes = dict.fromkeys(model.moe_layers, keep) if isinstance(keep, int) else dict(keep)
    changes: dict[int, Any] = {}
    origin: dict[int, npt.NDArray[np.int32]] = {}
    for layer, wish in wishes.items():
        moe = _moe_of(model, layer)
        kept = _kept(layer, wish, moe.experts.count, scores)
        changes[id(moe)] = _with_experts(moe, kept, layer)
        table = np.full(moe.count, -1, np.int32)
        table[kept] = np.arange(len(kept))
        table[moe.experts.count :] = len(kept) + np.arange(moe.zero_experts)
        origin[layer] = table
    return _changed(model, changes, origin)


def _moe_of(model: Model, layer: int) -> MoE:
    moe = model.layers[layer].moe if 0 <= layer < len(model.layers) else None
    if moe is None:
        raise ValueError(f"[edit] layer {layer}; layers with experts are {model.moe_layers}")
    return moe


def _kept(layer: int, wish: int | Sequence[int], count: int, scores: Scores | None) -> list[int]:
    if isinstance(wish, int):
        if scores is None or layer not in scores:
            raise ValueError(f"[prune] {wish} experts of layer {layer} without scores for it")
        if not 1 <= wish <= count:
            raise ValueError(f"[prune] {wish} experts of layer {layer}; it has {count}")
        kept = np.argsort(-np.asarray(scores[layer]), kind="stable")[:wish].tolist()
    else:
        kept = [int(expert) for expert in wish]
    if len(set(kept)) != len(kept) or not kept or not 0 <= min(kept) <= max(kept) < count:
        raise ValueError(
            f"[prune] experts {sorted(kept)[:8]} of layer {layer}; distinct ones of 0 to "
            f"{count - 1} are required"
        )
    return sorted(kept)


def _with_experts(moe: MoE, kept: list[int], layer: int) -> MoE:
    router = moe.router
    if type(router) is not Router:
        raise ValueError(
            f"[prune] layer {layer} is routed by {type(router).__name__}; a Router is required"
        )
    rule = router.rule
    groups = int(rule.get("groups", 1))
    size = moe.experts.count // groups
    sizes = {sum(expert // size == g for expert in kept) for g in range(groups)}
    if len(kept) + moe.zero_experts < router.k or (groups > 1 and len(sizes) > 1):
        raise ValueError(
            f"[prune] {len(kept)} experts of layer {layer} in {groups} groups; at least {router.k}"
            ", equally many in each group, are required"
        )
    rows = [*kept, *range(moe.experts.count, moe.count)]
    weight = router.linear.weight
    if "select_bias" in rule:
        rule["select_bias"] = rule["select_bias"][rows]
    bias = router.linear.bias
    smaller = Router(
        ops.pack(weight.unpack_expert(0)[rows], format=weight.expert_format(0)),
        router.k,
        bias=None if bias is None else bias[rows],
        **rule,
    )
    result = copy.copy(moe)
    result.experts = gathered([(moe.experts, expert) for expert in kept])
    result.router = smaller
    return result


def gathered(members: Sequence[tuple[Experts, int]], **banks: Any) -> Experts:
    """Experts of others as one `Experts` that shares their memory.

    `banks` replaces `gate`, `up`, `down` or a bias. ValueError where sizes, activations, limits or
    the presence of gates and biases differ.
    """
    first = members[0][0]
    for experts, _ in members:
        if (experts.activation, experts.limit) != (first.activation, first.limit):
            raise ValueError(
                f"[edit] experts with {experts.activation} and {first.activation}; one activation, "
                "with one limit, is required"
            )
    parts: dict[str, Any] = {}
    for name in ("gate", "up", "down", "gate_bias", "up_bias", "down_bias"):
        values = [getattr(experts, name) for experts, _ in members]
        if any((value is None) != (values[0] is None) for value in values):
            raise ValueError(f"[edit] experts with and without {name}; one kind is required")
        if values[0] is None:
            parts[name] = None
        elif name.endswith("_bias"):
            parts[name] = np.stack([v[e] for v, (_, e) in zip(values, members, strict=True)])
        else:
            pairs = [(value, e) for value, (_, e) in zip(values, members, strict=True)]
            parts[name] = PackedWeight.gather(pairs)
    parts.update(banks)
    return Experts(**parts, activation=first.activation, limit=first.limit)


def _changed(
    model: Model, changes: dict[int, Any], origin: Mapping[int, npt.NDArray[np.int32]]
) -> Model:
    result: Model = rebuilt(model, lambda _, value: changes.get(id(value), value))
    if result is model:
        return model
    # Its file has other experts: what `save` would write from these is not this model.
    result.placed = ()
    result.expert_origin = {**model.expert_origin, **origin}
    for layer in origin.keys() & model.expert_origin.keys():
        before = model.expert_origin[layer]
        result.expert_origin[layer] = np.where(before >= 0, origin[layer][before], -1)
    return result


# -- others in the place of experts --------------------------------------------------------


def merge(
    model: Model,
    groups: Mapping[int, Sequence[Sequence[int]]],
    scores: Scores | None = None,
    *,
    progress: bool | None = None,
) -> Model:
    """Experts of a group become one, their mean weighted by `scores` (Li et al., arXiv 2310.01334).

    `groups`: layer -> lists of experts. The router stays as it is: each id of a group leads to the
    same expert, whose memory is there once; a token that chose two of them gets it with both
    weights. The mean is packed in the format of the group's first expert. `progress` as in
    `importance`.
    """
    changes: dict[int, Any] = {}
    with Bar("merging", sum(map(len, groups.values())), progress, " groups") as bar:
        for layer, lists in groups.items():
            moe = _moe_of(model, layer)
            changes[id(moe)] = _merged(moe, layer, lists, scores, bar)
    return _changed(model, changes, {})


def _merged(
    moe: MoE, layer: int, lists: Sequence[Sequence[int]], scores: Scores | None, bar: Bar
) -> MoE:
    experts = moe.experts
    members = [(experts, expert) for expert in range(experts.count)]
    seen: set[int] = set()
    for group in lists:
        ids = _kept(layer, list(group), experts.count, None)
        if seen & set(ids):
            raise ValueError(f"[merge] an expert of layer {layer} is in two groups")
        seen |= set(ids)
        shares = np.ones(len(ids)) if scores is None else np.asarray(scores[layer])[ids]
        if not shares.sum() > 0:
            shares = np.ones(len(ids))
        one = _mean(experts, ids, shares / shares.sum(), group[0])
        for expert in ids:
            members[expert] = (one, 0)
        bar.advance(1)
    result = copy.copy(moe)
    result.experts = gathered(members)
    return result


def _mean(experts: Experts, ids: list[int], shares: npt.NDArray[np.float64], first: int) -> Experts:
    parts: dict[str, Any] = {}
    for name in ("gate", "up", "down"):
        bank = getattr(experts, name)
        if bank is None:
            parts[name] = None
            continue
        mean = sum(s * bank.unpack_expert(e) for s, e in zip(shares, ids, strict=True))
        parts[name] = ops.pack(np.asarray(mean, np.float32)[None], format=bank.expert_format(first))
    for name in ("gate_bias", "up_bias", "down_bias"):
        bias = getattr(experts, name)
        parts[name] = None if bias is None else np.tensordot(shares, bias[ids], axes=1)[None]
    return Experts(**parts, activation=experts.activation, limit=experts.limit)


def constant(
    model: Model,
    experts: Sequence[tuple[int, int]],
    texts: Texts,
    *,
    window: int = WINDOW,
    progress: bool | None = None,
) -> Model:
    """(layer, expert) give always what they gave on average over their tokens of `texts`.

    The average is weighted by the router, which makes it the constant of least squared error; an
    expert without tokens gives 0. The router stays as it is. `progress` as in `importance`.
    """
    wanted: dict[int, list[int]] = {}
    for layer, expert in experts:
        _kept(layer, [expert], _moe_of(model, layer).experts.count, None)
        wanted.setdefault(layer, []).append(expert)
    stream = Stream(model, windows_of(model, texts, window))
    changes: dict[int, Any] = {}
    with Bar("averaging", len(model.layers), progress, " layers") as bar:
        for n, block in enumerate(model.layers):
            tap, _, feeds = tapped(block)
            stream.states = stream.through(tap, n)
            if n in wanted:
                moe = _moe_of(model, n)
                changes[id(moe)] = _with_constants(moe, _inputs_of(moe, feeds, n), wanted[n])
            bar.advance(1)
    return _changed(model, changes, {})


def _with_constants(moe: MoE, seen: ExpertInputs, wanted: Sequence[int]) -> MoE:
    experts = moe.experts
    outputs = np.zeros((experts.count, experts.hidden), np.float32)
    if experts.down_bias is not None:
        outputs[:] = experts.down_bias
    for expert in wanted:
        rows, weights = seen.rows_of(expert)
        outputs[expert] = 0
        if len(rows):
            ids = np.full((len(rows), 1), expert, np.int32)
            ones = np.ones(ids.shape, np.float32)
            y = ops.moe_ffn(rows, Assignment(ids, ones), experts).astype(np.float64)
            shares = weights.astype(np.float64) ** 2
            if shares.sum() > 0:
                outputs[expert] = (shares[:, None] * y).sum(axis=0) / shares.sum()
    banks = {}
    for name in ("gate", "up", "down"):
        bank = getattr(experts, name)
        if bank is not None:
            # One matrix of zeros for all of them, in the format that takes least memory.
            zero = PackedWeight.empty("int8", (1, *bank.shape[1:]))
            zero.fill(0, np.zeros(bank.shape[1:], np.float32))
            banks[name] = PackedWeight.gather(
                [(zero, 0) if e in wanted else (bank, e) for e in range(experts.count)]
            )
    result = copy.copy(moe)
    members = [(experts, expert) for expert in range(experts.count)]
    if experts.down_bias is None:
        result.experts = gathered(members, **banks, down_bias=outputs)
    else:
        result.experts = gathered(members, **{**banks, "down_bias": outputs})
    return result


# -- assembling ----------------------------------------------------------------------------


def assemble(
    base: Model,
    experts: Mapping[int, Sequence[Source]],
    routers: Mapping[int, Router | npt.ArrayLike] | None = None,
    *,
    k: int = 2,
    seed: int = 0,
) -> Model:
    """`base` with mixtures of other models' feed-forward layers, without a copy of any.

    `experts`: layer -> (model, layer, expert) for each expert; a dense layer's is number 0, so
    `[(dense, n, 0)] * 8` upcycles a dense layer (Komatsuzaki et al., arXiv 2212.05055). `routers`:
    layer -> a Router, or its weight [E, H]; without one the weight is drawn at a deviation of
    0.02 from `seed`. Routers made here take a softmax over the chosen `k`, so that equal experts
    give what one of them gives. A shared expert of the layer stays.

    ValueError where sizes or activations differ.
    """
    changes: dict[int, Any] = {}
    for layer, sources in experts.items():
        if not 0 <= layer < len(base.layers) or not sources:
            raise ValueError(
                f"[assemble] {len(sources)} experts for layer {layer}; some, for one of "
                f"{len(base.layers)} layers, are required"
            )
        members = [_feed_forward(*source) for source in sources]
        there = getattr(base.layers[layer], "ffn", None)
        if there is None:
            raise ValueError(f"[assemble] layer {layer} has no feed-forward part")
        bank = gathered(members)
        router = (routers or {}).get(layer)
        if not isinstance(router, Router):
            rng = np.random.default_rng([seed, layer])
            weight = router
            if weight is None:
                weight = 0.02 * rng.standard_normal((len(members), bank.hidden))
            matrix = np.asarray(weight, np.float32)
            router = Router(Linear(matrix).weight, min(k, len(members)), score="softmax_topk")
        shared = there.shared if isinstance(there, MoE) else None
        changes[id(there)] = MoE(router, bank, shared)
    result = _changed(base, changes, {})
    if result is not base:
        result.assembled = True
    return result


def _feed_forward(model: Model, layer: int, expert: int) -> tuple[Experts, int]:
    ffn = getattr(model.layers[layer], "ffn", None) if 0 <= layer < len(model.layers) else None
    experts = getattr(ffn, "experts", None)
    if not isinstance(experts, Experts) or not 0 <= expert < experts.count:
        raise ValueError(f"[assemble] there is no expert {expert} in layer {layer} of {model!r}")
    return experts, expert
