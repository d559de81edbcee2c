"""Do experts specialise, by domain or by word? Measured with an interval and against chance.

Routing is a weak semantic signal: with few tokens any two texts seem to use different experts. So
every figure comes with what shuffled labels give, and the result says in words what is left.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..record import Record

Doubles = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]

# Share of the routing's entropy that labels explain beyond chance, below which it is called weak.
# Experts whose odds differ between two domains by a factor of 3 to 5, half of them up and half of
# them down, explain about this much.
WEAK = 0.02
_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Strength:
    """How much labels explain of the routing, layer by layer; every array is [layers].

    `explained` is the mutual information of label and expert over the entropy of the expert, minus
    what shuffled labels give (`null`, an average): 0 is chance, 1 complete. `low` and `high` are a
    95 % bootstrap interval; `p_value` the share of shuffles that explain as much.
    """

    explained: Doubles
    low: Doubles
    high: Doubles
    null: Doubles
    p_value: Doubles

    @property
    def verdicts(self) -> list[str]:
        """ "none", "weak" or "clear" for each layer."""
        return [
            "none" if p > _SIGNIFICANT or not low > 0 else ("weak" if explained < WEAK else "clear")
            for explained, low, p in zip(self.explained, self.low, self.p_value, strict=True)
        ]


@dataclass(frozen=True)
class Specialisation:
    """Which experts serve which domain and which word; `print` it for the findings in words.

    `layers` are the model's numbers. `domain` float64 [layers, E, domains]: the share of a domain's
    tokens that an expert serves, with a 95 % bootstrap interval `domain_low` to `domain_high`.
    `vocabulary` [layers, ids, E]: the share of a token id's occurrences that an expert serves, for
    the ids [n] that occur often enough (OLMoE: Muennighoff et al. 2024, arXiv 2409.02060, section
    5.3 and 5.4). nan beyond a layer's experts. `domain_strength` and `vocabulary_strength` measure
    both against shuffled labels.
    """

    domains: list[str]
    layers: npt.NDArray[np.int32]
    tokens: Longs
    domain: Doubles
    domain_low: Doubles
    domain_high: Doubles
    domain_strength: Strength
    ids: Longs
    vocabulary: Doubles
    vocabulary_strength: Strength
    texts: list[str] | None = None

    def top(self, domain: str, layer: int, count: int = 3) -> list[tuple[int, float]]:
        """The experts that serve a domain most: (expert, share of the domain's tokens)."""
        place = self._place(layer)
        shares = np.nan_to_num(self.domain[place, :, self._domain(domain)], nan=-1.0)
        best = np.argsort(-shares, kind="stable")[:count]
        return [(int(e), float(shares[e])) for e in best]

    def words(self, layer: int, expert: int, count: int = 5) -> list[tuple[str, float]]:
        """The words that go to an expert most reliably: (text or id, share of occurrences)."""
        place = self._place(layer)
        shares = self.vocabulary[place, :, expert]
        best = np.argsort(-shares, kind="stable")[:count]
        names = self.texts or [str(i) for i in self.ids]
        return [(names[i], float(shares[i])) for i in best]

    def _place(self, layer: int) -> int:
        found = np.flatnonzero(self.layers == layer)
        if not len(found):
            raise ValueError(f"[specialisation] layer {layer}; measured are {self.layers.tolist()}")
        return int(found[0])

    def _domain(self, domain: str) -> int:
        if domain not in self.domains:
            raise ValueError(f"[specialisation] domain {domain!r}; there are {self.domains}")
        return self.domains.index(domain)

    def __str__(self) -> str:
        lines = []
        for title, labels, strength in (
            ("domain", f"{len(self.domains)} domains", self.domain_strength),
            ("vocabulary", f"{len(self.ids)} token ids", self.vocabulary_strength),
        ):
            lines.append(
                f"{title}: how much of the routing {labels} explain beyond chance "
                "(95 % interval; what shuffled labels give)"
            )
            for i, layer in enumerate(self.layers):
                lines.append(
                    f"  layer {layer:>3}  {strength.explained[i]:6.1%} "
                    f"({strength.low[i]:.1%} to {strength.high[i]:.1%}; "
                    f"{strength.null[i]:.1%})  {strength.verdicts[i]}"
                )
            lines.append("  " + _in_words(title, strength))
        return "\n".join(lines)


def _in_words(title: str, strength: Strength) -> str:
    verdicts = strength.verdicts
    count = {v: verdicts.count(v) for v in ("none", "weak", "clear")}
    if not verdicts:
        return "There are no layers with experts."
    if count["none"] == len(verdicts):
        return f"Routing does not depend on the {title} as far as this text can show."
    if count["clear"] == 0:
        return (
            f"Weak: the {title} explains less than {WEAK:.0%} of the routing in every layer. "
            "Do not read meaning into single experts."
        )
    rest = [f"{n} {v}" for v, n in count.items() if n and v != "clear"]
    also = f" ({', '.join(rest)})" if rest else ""
    most = float(np.max(strength.explained))
    return (
        f"Clear in {count['clear']} of {len(verdicts)} layers{also}; still, {1 - most:.0%} or more "
        f"of the routing has other reasons than the {title}."
    )


def specialisation(
    records: Mapping[str, Record],
    *,
    k: int | None = None,
    words: str = "read",
    block: int = 32,
    min_count: int = 8,
    resamples: int = 400,
    permutations: int = 200,
    seed: int = 0,
) -> Specialisation:
    """Domain and vocabulary specialisation of the experts, each against shuffled labels.

    Args:
        records: domain -> record, all of one policy and the same layers; two or more.
        k: count only the first k slots (OLMoE also looks at k = 1); None counts all.
        words: the vocabulary is of the ids that a token "read", or of those that follow ("next").
        block: neighbouring tokens go to similar experts, so shuffling and resampling move blocks of
            this many tokens of one sequence, not single tokens.
        min_count: ids that occur less often have no vocabulary specialisation.
        resamples, permutations: of the bootstrap and of the null.
        seed: of both.

    ValueError for records that do not belong together or are too short for a null.
    """
    if len(records) < 2:
        raise ValueError(f"[specialisation] {len(records)} domains; two or more are required")
    if block < 1 or min_count < 1 or resamples < 20 or permutations < 20:
        raise ValueError(
            f"[specialisation] block {block}, min_count {min_count}, resamples {resamples}, "
            f"permutations {permutations}; at least 1, 1, 20 and 20 are required"
        )
    if words not in ("read", "next"):
        raise ValueError(f"[specialisation] words is {words!r}; read or next is required")
    whole = Record.join(records.values())  # refuses what does not belong together
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(records)), [len(r) for r in records.values()])
    experts = whole.experts if k is None else whole.experts[:, :, :k]
    units = _units(label, whole.sequences, block)
    unit_label = np.zeros(int(units.max(initial=-1)) + 1, np.int64)
    unit_label[units] = label
    per_domain = np.bincount(unit_label, minlength=len(records))
    if per_domain.min() < 2:
        short = list(records)[int(per_domain.argmin())]
        raise ValueError(
            f"[specialisation] {short!r} has {per_domain.min()} blocks of {block} tokens; "
            "2 or more are required (give more text, or a smaller block=)"
        )
    most = int(whole.num_experts.max())
    counts = _counts_of(experts, units, len(unit_label), most)
    unit_tokens = np.bincount(units).astype(np.float64)
    domain = _by_domain(counts, unit_tokens, unit_label, len(records), rng, resamples, permutations)
    beyond = np.arange(most) >= whole.num_experts[:, None]
    for shares in domain[:3]:
        shares[beyond] = np.nan
    ids, vocabulary, strength = _by_word(
        experts,
        whole.ids if words == "read" else _following(whole),
        most,
        min_count,
        rng,
        resamples // 4,
        permutations // 4,
    )
    vocabulary[np.broadcast_to(beyond[:, None], vocabulary.shape)] = np.nan
    return Specialisation(
        list(records),
        whole.layers,
        np.bincount(label, minlength=len(records)),
        *domain,
        ids,
        vocabulary,
        strength,
        _names(whole, ids),
    )


def _following(record: Record) -> npt.NDArray[np.int32]:
    """The id after each token in its sequence, -1 where none was read."""
    following = np.full(len(record), -1, np.int32)
    goes_on = (np.diff(record.sequences) == 0) & (np.diff(record.positions) == 1)
    following[:-1][goes_on] = record.ids[1:][goes_on]
    return following


def _units(label: Longs, sequences: npt.NDArray[np.int32], block: int) -> Longs:
    """A number for each token: runs of one sequence of one domain, cut into blocks."""
    new = np.ones(len(label), np.bool_)
    new[1:] = (np.diff(label) != 0) | (np.diff(sequences) != 0)
    starts = np.flatnonzero(new)
    within = np.arange(len(label)) - np.repeat(starts, np.diff([*starts, len(label)]))
    return np.cumsum(new | (within % block == 0)) - 1


def _counts_of(experts: npt.NDArray[np.int32], group: Longs, groups: int, most: int) -> Doubles:
    """Float64 [groups, layers, E]: slots of each group's tokens that went to each expert."""
    layers = experts.shape[1]
    out = np.empty((groups, layers, most))
    for layer in range(layers):
        chosen = experts[:, layer]
        used = chosen >= 0
        flat = (group[:, None] * most + chosen)[used]
        out[:, layer] = np.bincount(flat, minlength=groups * most).reshape(groups, most)
    return out


def _by_domain(
    counts: Doubles,
    unit_tokens: Doubles,
    unit_label: Longs,
    domains: int,
    rng: np.random.Generator,
    resamples: int,
    permutations: int,
) -> tuple[Doubles, Doubles, Doubles, Strength]:
    """Shares [layers, E, domains], their interval, and the strength."""
    units, layers, most = counts.shape
    flat = counts.reshape(units, -1)

    def tables(member: Doubles) -> tuple[Doubles, Doubles]:
        """(counts [domains, layers, E], tokens [domains]) of weights [domains, units]."""
        return (member @ flat).reshape(domains, layers, most), member @ unit_tokens

    observed, tokens = tables(_membership(unit_label, domains))
    drawn, shares = [], []
    own = [np.flatnonzero(unit_label == d) for d in range(domains)]
    for _ in range(resamples):
        member = np.zeros((domains, units))
        for d, mine in enumerate(own):
            member[d, mine] = rng.multinomial(len(mine), np.full(len(mine), 1 / len(mine)))
        table, size = tables(member)
        drawn.append(_explained(table))
        shares.append(table / size[:, None, None])
    null = []
    for _ in range(permutations):
        table, _ = tables(_membership(rng.permutation(unit_label), domains))
        null.append(_explained(table))
    low, high = np.quantile(np.array(shares), [0.025, 0.975], axis=0)
    share = observed / tokens[:, None, None]
    return (
        np.moveaxis(share, 0, -1).copy(),
        np.moveaxis(low, 0, -1).copy(),
        np.moveaxis(high, 0, -1).copy(),
        _strength(_explained(observed), np.array(drawn), np.array(null)),
    )


def _membership(unit_label: Longs, domains: int) -> Doubles:
    member: Doubles = (unit_label == np.arange(domains)[:, None]).astype(np.float64)
    return member


def _explained(table: Doubles) -> Doubles:
    """I(label; expert) / H(expert) of counts [labels, layers, E]: [layers].

    Labels weigh equally, or a longer text would count for more.
    """
    total = table.sum(axis=-1, keepdims=True)
    p = _ratio(table, total)
    known = total[..., 0] > 0
    mean = p.sum(axis=0) / np.maximum(known.sum(axis=0), 1)[:, None]
    within = (_entropy(p) * known).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    whole = _entropy(mean)
    return _ratio(whole - within, whole)


def _ratio(a: Doubles, b: Doubles) -> Doubles:
    """a / b, 0 where b is."""
    out: Doubles = np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b > 0)
    return out


def _entropy(p: Doubles) -> Doubles:
    h: Doubles = np.asarray(-(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1))
    return h


def _strength(observed: Doubles, drawn: Doubles, null: Doubles) -> Strength:
    """The interval is the bootstrap's spread around the estimate: resampling repeats tokens, which
    explain themselves, so its values lie too high as a whole."""
    chance = null.mean(axis=0)
    spread = np.quantile(drawn, [0.025, 0.975], axis=0) - drawn.mean(axis=0)
    p = (1 + (null >= observed).sum(axis=0)) / (1 + len(null))
    excess = observed - chance
    return Strength(excess, excess - spread[1], excess - spread[0], chance, p)


def _by_word(
    experts: npt.NDArray[np.int32],
    ids: npt.NDArray[np.int32],
    most: int,
    min_count: int,
    rng: np.random.Generator,
    resamples: int,
    permutations: int,
) -> tuple[Longs, Doubles, Strength]:
    """(ids [n], shares [layers, n, E], strength) of the ids that occur often enough."""
    words, place, times = np.unique(ids, return_inverse=True, return_counts=True)
    often = (times >= min_count) & (words >= 0)
    rows = np.flatnonzero(often[place])
    layers = experts.shape[1]
    if often.sum() < 2:
        nothing = np.full(layers, np.nan)
        empty = Strength(nothing, nothing, nothing, nothing, np.ones(layers))
        return words[:0].astype(np.int64), np.zeros((layers, 0, most)), empty
    number = np.cumsum(often) - 1
    group, chosen = number[place[rows]], experts[rows]
    n = int(often.sum())

    def explained(rows: Longs, group: Longs) -> Doubles:
        return _explained_weighted(_counts_of(chosen[rows], group, n, most))

    everyone = np.arange(len(rows))
    table = _counts_of(chosen, group, n, most)
    drawn = []
    for _ in range(max(20, resamples)):
        again = rng.integers(0, len(rows), len(rows))
        drawn.append(explained(again, group[again]))
    null = [explained(everyone, rng.permutation(group)) for _ in range(max(20, permutations))]
    strength = _strength(_explained_weighted(table), np.array(drawn), np.array(null))
    shares = np.moveaxis(table / times[often][:, None, None], 0, 1).copy()
    return words[often].astype(np.int64), shares, strength


def _explained_weighted(table: Doubles) -> Doubles:
    """The same with labels weighted by how often they occur: words differ by orders."""
    total = table.sum(axis=-1, keepdims=True)
    p = _ratio(table, total)
    weight = total[..., 0] / np.maximum(total[..., 0].sum(axis=0), 1)
    whole = _entropy((p * weight[..., None]).sum(axis=0))
    within = (_entropy(p) * weight).sum(axis=0)
    return _ratio(whole - within, whole)


def _names(record: Record, ids: Longs) -> list[str] | None:
    texts: Any = record.texts
    if texts is None:
        return None
    first = {int(i): t for i, t in zip(record.ids, texts, strict=True)}
    return [first[int(i)] for i in ids]


def saturation(earlier: Record, final: Record) -> Doubles:
    """The share of a token's final experts that an earlier checkpoint chose too, by layer.

    OLMoE (arXiv 2409.02060), section 5.1: router saturation, 1 where routing has settled, about
    K / E where it is unrelated. Float64 [layers], over the tokens of both records, which must be
    the same tokens of the same layers. nan where the final checkpoint chose nothing.
    """
    same = np.array_equal(earlier.ids, final.ids) and np.array_equal(
        earlier.positions, final.positions
    )
    if not same or not np.array_equal(earlier.layers, final.layers):
        raise ValueError(
            f"[saturation] {earlier!r} and {final!r} are of other tokens or layers; "
            "both checkpoints have to read the same text"
        )
    before, after = earlier.experts, final.experts
    kept = (after[..., :, None] == before[..., None, :]).any(axis=-1) & (after >= 0)
    total = (after >= 0).sum(axis=(0, 2))
    with np.errstate(invalid="ignore"):
        shares: Doubles = kept.sum(axis=(0, 2)).astype(np.float64) / total
    return shares
