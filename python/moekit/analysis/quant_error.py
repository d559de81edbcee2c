"""What quantisation did to a mixture of experts: to its experts, and to its routing.

Three passes over each window: the full model, whose routing is recorded; the quantised one; and the
quantised one under the recorded routing. With p the full model's predictions, q the quantised one's
and h those with the routing held,

    KL(p ‖ q) = KL(p ‖ h) + (KL(p ‖ q) - KL(p ‖ h))
                 experts     routing

the first term is what rounding the weights does while every token keeps its experts and their
weights, the second what follows from being routed otherwise. It is 0 to the bit where the routing
is held, the first one where only routers differ; for a single token it may be negative, where
being routed otherwise makes up for an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import ops
from ..nn import Model, MoE
from ..nn.types import Floats
from ..ops import Assignment, Experts
from ..quantization.budget import divergences
from ..quantization.layerwise import WINDOW, Stream, Texts, tapped, windows_of
from ..record import Record
from ..saving.bar import Bar

Doubles = npt.NDArray[np.float64]
# Groups of equally many (token, layer) pairs by the full router's margin.
_MARGIN_GROUPS = 10
# Tokens whose experts are run side by side for the errors of single experts.
_EXPERT_TOKENS = 8192
_CONTEXT_TOKENS = 12


@dataclass(frozen=True, slots=True)
class LayerAgreement:
    """Of one layer: the share of chosen experts that both models chose, and the share of tokens
    with the same set of them."""

    layer: int
    agreement: float
    same_set: float


@dataclass(frozen=True, slots=True)
class MarginGroup:
    """Decisions whose margin, the K-th score above the next one, is in [low, high]; `flips` is the
    share of them that chose another set of experts."""

    low: float
    high: float
    flips: float


@dataclass(frozen=True, slots=True)
class ExpertError:
    """An expert's outputs for the tokens that the full model sends to it: `share` of the layer's
    slots, and ‖ŷ - y‖² / ‖y‖² (None where it has no tokens or is not there any more)."""

    layer: int
    expert: int
    share: float
    error: float | None


@dataclass(frozen=True, slots=True)
class WorstToken:
    """A prediction that differs most: what stands before it, the token that was read last, and the
    divergence with its two parts."""

    context: str
    token: str
    kl: float
    kl_experts: float
    kl_routing: float


@dataclass(slots=True)
class QuantReport:
    """Means over `tokens` predictions; divergences in nats.

    `agreement` is the mean over layers; `top1` the share of tokens whose likeliest successor is the
    same. Perplexities are those of the texts. `token_kl` [tokens, 3] holds the divergence and its
    two parts token by token.
    """

    tokens: int
    kl: float
    kl_experts: float
    kl_routing: float
    top1: float
    perplexity_full: float
    perplexity_quantised: float
    agreement: float
    layers: list[LayerAgreement]
    margins: list[MarginGroup]
    experts: list[ExpertError]
    worst: list[WorstToken]
    bytes_full: int
    bytes_quantised: int
    token_kl: Doubles = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; the single tokens stay out."""
        return {key: value for key, value in asdict(self).items() if key != "token_kl"}

    def passes(
        self, min_agreement: float = 0.0, max_kl: float = np.inf, max_perplexity: float = np.inf
    ) -> bool:
        """True within all thresholds; `max_perplexity` is a ratio to the full model's."""
        ratio = self.perplexity_quantised / self.perplexity_full
        # Comparisons with NaN are false, so a broken model never passes.
        return bool(self.agreement >= min_agreement and self.kl <= max_kl) and bool(
            ratio <= max_perplexity
        )


def quant_report(
    full: Model,
    quantised: Model,
    texts: Texts,
    *,
    window: int = WINDOW,
    worst: int = 10,
    hold_routing: bool = False,
    progress: bool | None = None,
) -> QuantReport:
    """How `quantised` differs from `full` on `texts` (or lists of ids), cut into windows.

    `hold_routing` gives the quantised model the full one's routing in every pass. Models with
    other experts than the full one's (`mk.edit`) say in `expert_origin` which became which; slots
    of experts that are gone are empty where the routing is held. In layers whose experts do not
    correspond (assembled ones, a dense layer that became a mixture) its own choices are held: what
    such a layer changes counts to the experts' part, and it is in none of the lists. `progress`: a
    bar on stderr; None shows it on a terminal when it takes longer than two seconds.

    ValueError for models that do not fit each other and for texts without two tokens.
    """
    _require_fit(full, quantised)
    shared = _shared_layers(full, quantised)
    windows = windows_of(full, texts, window)
    if worst < 0:
        raise ValueError(f"[quant_report] worst {worst}; 0 or more is required")
    parts = []
    with Bar("comparing", sum(map(len, windows)), progress, " tokens") as bar:
        for ids in windows:
            parts.append(_compare(full, quantised, shared, ids, hold_routing))
            bar.advance(len(ids))
    kl = np.concatenate([part.kl for part in parts])
    layers = [
        LayerAgreement(layer, float(agree), float(same))
        for layer, agree, same in zip(
            shared,
            np.concatenate([part.agreement for part in parts]).mean(axis=0),
            np.concatenate([part.same for part in parts]).mean(axis=0),
            strict=True,
        )
    ]
    losses = np.concatenate([part.losses for part in parts]).mean(axis=0)
    means = kl.mean(axis=0)
    return QuantReport(
        tokens=len(kl),
        kl=float(means[0]),
        kl_experts=float(means[1]),
        kl_routing=float(means[2]),
        top1=float(np.concatenate([part.top1 for part in parts]).mean()),
        perplexity_full=float(np.exp(losses[0])),
        perplexity_quantised=float(np.exp(losses[1])),
        agreement=float(np.mean([row.agreement for row in layers])) if layers else 1.0,
        layers=layers,
        margins=_by_margin(parts),
        experts=expert_errors(full, quantised, windows, shared),
        worst=_worst(full, windows, kl, worst),
        bytes_full=sum(full.memory().values()),
        bytes_quantised=sum(quantised.memory().values()),
        token_kl=kl,
    )


def _require_fit(full: Model, quantised: Model) -> None:
    for model in (full, quantised):
        if not isinstance(model, Model):
            raise TypeError(f"[quant_report] {type(model).__name__}; a decoder is required")
    pairs = (
        ("vocabularies", full.vocab_size, quantised.vocab_size),
        ("layers", len(full.layers), len(quantised.layers)),
    )
    for what, mine, theirs in pairs:
        if mine != theirs:
            raise ValueError(f"[quant_report] {what} {mine} and {theirs}; the same are required")


def _shared_layers(full: Model, quantised: Model) -> list[int]:
    """Layers whose experts correspond: as many of them, or their origin is known.

    ValueError where other numbers of experts have not been told of.
    """
    both = []
    for layer in full.moe_layers:
        if quantised.layers[layer].moe is None:
            continue
        a, b = _moe(full, layer), _moe(quantised, layer)
        if layer in quantised.expert_origin or a.count == b.count:
            both.append(layer)
        elif not quantised.assembled and not full.assembled:
            raise ValueError(
                f"[quant_report] layer {layer} has {a.count} and {b.count} experts; as many, or "
                "expert_origin, are required"
            )
    return both


def _moe(model: Model, layer: int) -> MoE:
    moe = model.layers[layer].moe
    assert moe is not None
    return moe


@dataclass(frozen=True, slots=True)
class _Part:
    """One window: kl [T, 3], losses [T - 1, 2], top1 [T], agreement, same, margins [T, layers]."""

    kl: Doubles
    losses: Doubles
    top1: npt.NDArray[np.bool_]
    agreement: Doubles
    same: npt.NDArray[np.bool_]
    margins: npt.NDArray[Any]


def _compare(
    full: Model,
    quantised: Model,
    shared: list[int],
    ids: npt.NDArray[np.int32],
    hold_routing: bool,
) -> _Part:
    with full.record(margins=True) as recorded:
        wanted = full.logits([ids])
    held = _translated(recorded, quantised.expert_origin)
    alike = shared == full.moe_layers == quantised.moe_layers
    if not alike or not hold_routing:
        with quantised.record() as chosen:
            got = quantised.logits([ids])
        if not alike:
            held = _completed(held, chosen, shared)
        by_experts = quantised.logits([ids], routing=held)
    if hold_routing:
        with quantised.record() as chosen:
            got = by_experts = quantised.logits([ids], routing=held)
    total = divergences(wanted, got)
    experts = total if got is by_experts else divergences(wanted, by_experts)
    losses = np.stack([_losses(wanted, ids), _losses(got, ids)], axis=1)
    mine = [held.layer_index(layer) for layer in shared]
    theirs = [chosen.layer_index(layer) for layer in shared]
    agreement, same = _agreement(held.experts[:, mine], chosen.experts[:, theirs])
    margins: npt.NDArray[Any] = np.zeros((len(ids), 0))
    if recorded.margins is not None:
        margins = recorded.margins[:, [recorded.layer_index(layer) for layer in shared]]
    return _Part(
        np.stack([total, experts, total - experts], axis=1),
        losses,
        wanted.argmax(axis=-1) == got.argmax(axis=-1),
        agreement,
        same,
        margins,
    )


def _completed(held: Record, chosen: Record, shared: list[int]) -> Record:
    """`held` in the shared layers and, in the others of the quantised model, what it chose."""
    layers = chosen.layers.tolist()
    sources = [held if layer in shared else chosen for layer in layers]
    slots = max(source.experts.shape[2] for source in sources)
    experts = np.full((len(chosen), len(layers), slots), -1, np.int32)
    weights = np.zeros(experts.shape, np.float32)
    counts = []
    for place, (layer, source) in enumerate(zip(layers, sources, strict=True)):
        there = source.layer_index(layer)
        k = source.experts.shape[2]
        experts[:, place, :k] = source.experts[:, there]
        weights[:, place, :k] = source.weights[:, there]
        counts.append(int(source.num_experts[there]))
    return Record(
        experts,
        weights,
        layers,
        num_experts=counts,
        sequences=chosen.sequences,
        positions=chosen.positions,
        ids=chosen.ids,
    )


def _losses(logits: Floats, ids: npt.NDArray[np.int32]) -> Doubles:
    """-log p of each token but the first: float64 [T - 1]."""
    rows = logits[:-1]
    found = np.empty(len(rows))
    for n, row in enumerate(rows):
        wide = row.astype(np.float64) - float(row.max())
        found[n] = np.log(np.exp(wide).sum()) - wide[ids[n + 1]]
    return found


def _translated(record: Record, origin: Mapping[int, npt.NDArray[np.int32]]) -> Record:
    """The record in the ids of a model whose experts came from others; gone ones are empty."""
    if not origin:
        return record
    experts, weights = record.experts.copy(), record.weights.copy()
    counts = record.num_experts.copy()
    for place, layer in enumerate(record.layers.tolist()):
        if layer in origin:
            table = np.append(origin[layer], -1).astype(np.int32)
            experts[:, place] = table[experts[:, place]]
            counts[place] = int(origin[layer].max()) + 1
    weights[experts < 0] = 0
    return Record(
        experts,
        weights,
        record.layers,
        num_experts=counts,
        sequences=record.sequences,
        positions=record.positions,
        ids=record.ids,
    )


def _agreement(
    mine: npt.NDArray[np.int32], theirs: npt.NDArray[np.int32]
) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """Share of `mine` that were chosen in `theirs` too, and whether the sets are equal: [T, layers]
    of experts [T, layers, K]."""
    chosen = mine >= 0
    in_both = (mine[..., :, None] == theirs[..., None, :]).any(axis=-1) & chosen
    back = (theirs[..., :, None] == mine[..., None, :]).any(axis=-1) | (theirs < 0)
    count = np.maximum(chosen.sum(axis=-1), 1)
    same = (in_both | ~chosen).all(axis=-1) & back.all(axis=-1)
    share = in_both.sum(axis=-1) / count
    return np.where(chosen.any(axis=-1), share, 1.0), same


def _by_margin(parts: Sequence[_Part]) -> list[MarginGroup]:
    margins = np.concatenate([part.margins.ravel() for part in parts]).astype(np.float64)
    flips = ~np.concatenate([part.same.ravel() for part in parts])
    if margins.size != flips.size:
        return []
    known = np.isfinite(margins)
    margins, flips = margins[known], flips[known]
    order = np.argsort(margins, kind="stable")
    groups = [rows for rows in np.array_split(order, _MARGIN_GROUPS) if len(rows)]
    return [
        MarginGroup(
            float(margins[rows].min()), float(margins[rows].max()), float(flips[rows].mean())
        )
        for rows in groups
    ]


def _worst(
    model: Model, windows: Sequence[npt.NDArray[np.int32]], kl: Doubles, count: int
) -> list[WorstToken]:
    ids = np.concatenate(list(windows))
    starts = np.repeat(np.cumsum([0, *(len(w) for w in windows[:-1])]), [len(w) for w in windows])
    found = []
    for row in np.argsort(-kl[:, 0], kind="stable")[:count]:
        begin = max(int(starts[row]), int(row) - _CONTEXT_TOKENS)
        found.append(
            WorstToken(
                _text(model, ids[begin:row]),
                _text(model, ids[row : row + 1]),
                *(float(value) for value in kl[row]),
            )
        )
    return found


def _text(model: Model, ids: npt.NDArray[np.int32]) -> str:
    if model.tokenizer is None:
        return " ".join(str(token) for token in ids.tolist())
    return "".join(model.tokenizer.token_text(int(token)) for token in ids)


# -- single experts ------------------------------------------------------------------------


def expert_errors(
    full: Model,
    quantised: Model,
    windows: Sequence[npt.NDArray[np.int32]],
    layers: Sequence[int],
) -> list[ExpertError]:
    """Every expert's error on what the full model sends to it, layer after layer.

    At most 8192 tokens are used, taken from the front.
    """
    taken, tokens = [], 0
    for ids in windows:
        if tokens < _EXPERT_TOKENS:
            taken.append(ids)
            tokens += len(ids)
    stream = Stream(full, taken)
    found: list[ExpertError] = []
    for n, block in enumerate(full.layers):
        moe = block.moe
        if moe is None or n not in layers:
            stream.states = stream.through(block, n)
            continue
        tap, _, feeds = tapped(block)
        stream.states = stream.through(tap, n)
        origin = quantised.expert_origin.get(n, np.arange(moe.experts.count))
        total = np.zeros((2, moe.experts.count))
        counts = np.zeros(moe.experts.count, np.int64)
        for x, assignment in feeds[id(moe)].parts if id(moe) in feeds else []:
            _add_errors(moe.experts, _moe(quantised, n).experts, origin, x, assignment, total)
            served = (assignment.experts >= 0) & (assignment.experts < len(counts))
            counts += np.bincount(assignment.experts[served], minlength=len(counts))
        for expert, (error, power) in enumerate(total.T.tolist()):
            there = counts[expert] > 0 and origin[expert] >= 0 and power > 0
            share = float(counts[expert] / max(counts.sum(), 1))
            found.append(ExpertError(n, expert, share, error / power if there else None))
    return found


def _add_errors(
    full: Experts,
    quantised: Experts,
    origin: npt.NDArray[Any],
    x: Floats,
    assignment: Assignment,
    total: Doubles,
) -> None:
    """Add ‖ŷ - y‖² and ‖y‖² of each expert over the rows sent to it."""
    token, slot = np.nonzero(assignment.experts >= 0)
    expert = assignment.experts[token, slot]
    # Ids beyond the experts give a token back as it is; experts that are gone have no output.
    there = (expert < full.count) & (origin[np.minimum(expert, full.count - 1)] >= 0)
    token, slot, expert = token[there], slot[there], expert[there]
    rows = x[token]
    if assignment.on_input:
        rows = rows * assignment.weights[token, slot][:, None]
    y = ops.moe_ffn(rows, _only(expert), full)
    z = ops.moe_ffn(rows, _only(origin[expert]), quantised)
    count = len(total[0])
    difference = (z - y).astype(np.float64)
    total[0] += np.bincount(expert, (difference**2).sum(axis=1), count)
    total[1] += np.bincount(expert, (y.astype(np.float64) ** 2).sum(axis=1), count)


def _only(experts: npt.NDArray[Any]) -> Assignment:
    chosen = np.ascontiguousarray(experts, np.int32)[:, None]
    return Assignment(chosen, np.ones(chosen.shape, np.float32))
