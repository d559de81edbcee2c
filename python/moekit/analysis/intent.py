"""Routing by intent: the profile of a domain as a bias, and what following it does and costs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..nn import Model
from ..record import Record
from .reading import (
    Doubles,
    Texts,
    divergence,
    readings,
    record_texts,
    token_losses,
)

# Tokens are added to every expert's count on both sides: an expert that one text never used would
# get an infinite bias.
_SMOOTHING = 0.5


class Profile(Mapping[tuple[int, int], float]):
    """{(layer, expert): bias} that draws routing to what a domain uses, for `intervene(bias=)`.

    An entry is ln(share of the domain's tokens on the expert / share in general): added to a
    softmax router's logits with strength 1, it multiplies the expert's odds by that ratio.
    """

    def __init__(self, name: str, bias: Mapping[tuple[int, int], float]) -> None:
        self.name = name
        self._bias = dict(bias)

    def __getitem__(self, place: tuple[int, int]) -> float:
        return self._bias[place]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._bias)

    def __len__(self) -> int:
        return len(self._bias)

    def experts(self, count: int = 4) -> dict[int, list[int]]:
        """The domain's own experts: of each layer at most so many, the most favoured first."""
        found: dict[int, list[tuple[float, int]]] = {}
        for (layer, expert), bias in self._bias.items():
            if bias > 0:
                found.setdefault(layer, []).append((-bias, expert))
        return {n: [e for _, e in sorted(pairs)[:count]] for n, pairs in found.items()}

    def __repr__(self) -> str:
        return f"Profile({self.name!r}, {len(self._bias)} experts)"


def profile(
    texts: Mapping[str, Record | Texts], model: Model | None = None, *, window: int = 256
) -> dict[str, Profile]:
    """What each domain's routing looks like, as a bias: name -> `Profile`.

    Args:
        texts: domain -> texts (or a record of them). With several domains each is compared with
            the average of all; one alone with an even load.
        model: reads the texts; the model in the package by default. Not needed for records.
        window: texts are read in sequences of this many tokens.

    >>> profiles = profile({"code": code, "prose": prose}, model)           # doctest: +SKIP
    >>> with model.intervene(bias=profiles["code"], strength=1.0): ...      # doctest: +SKIP
    """
    if not texts:
        raise ValueError("[profile] there are no domains")
    records = {}
    for name, given in texts.items():
        if not isinstance(given, Record):
            if model is None:
                from ..loading import demo_model

                model = demo_model()
            given = record_texts(model, given, window)
        records[name] = given
    whole = Record.join(records.values())  # refuses records of different models
    if not len(whole):
        raise ValueError("[profile] the records have no tokens")
    shares = {}
    for name, record in records.items():
        counts = record.counts + _SMOOTHING
        exists = np.arange(counts.shape[1]) < record.num_experts[:, None]
        shares[name] = counts / np.where(exists, counts, 0).sum(axis=1, keepdims=True)
    if len(records) == 1:
        general = np.broadcast_to(1 / whole.num_experts[:, None], next(iter(shares.values())).shape)
    else:
        general = np.mean(list(shares.values()), axis=0)
    return {
        name: Profile(
            name,
            {
                (int(layer), e): float(np.log(share[row, e] / general[row, e]))
                for row, layer in enumerate(whole.layers)
                for e in range(int(whole.num_experts[row]))
            },
        )
        for name, share in shares.items()
    }


@dataclass(frozen=True)
class Intent:
    """What following a profile does, strength by strength; every array is [strengths].

    `share`: of the routing weight, what the profile's own experts carry. `kl`: nats a token between
    the next-token distributions without and with the bias. `loss`: nats a token on the texts.
    """

    name: str
    strengths: Doubles
    share: Doubles
    kl: Doubles
    loss: Doubles
    experts: Mapping[int, list[int]]

    def __str__(self) -> str:
        lines = [f"{self.name}: share of the profile's experts, and its cost", ""]
        lines[1] = f"{'strength':>9} {'share':>7} {'KL':>8} {'loss':>8}"
        for row in zip(self.strengths, self.share, self.kl, self.loss, strict=True):
            lines.append(f"{row[0]:9.2f} {row[1]:7.1%} {row[2]:8.4f} {row[3]:8.4f}")
        return "\n".join(lines)


def intent(
    model: Model,
    bias: Profile,
    texts: Texts,
    strengths: Sequence[float] = (0, 0.5, 1, 2, 4),
    *,
    experts: int = 4,
    window: int = 256,
) -> Intent:
    """How far a profile draws routing to its experts on `texts`, and what it costs in KL and loss.

    `texts`: for an encoder-decoder, pairs (source, answer). `experts`: how many of a layer count
    as the profile's own, the most favoured ones.
    """
    own = bias.experts(experts)
    sums = np.zeros((len(strengths), 4))
    tokens = predicted = 0
    for reading in readings(model, texts, window, op="intent"):
        plain = reading.logits(model)
        tokens += len(plain)
        following, keep = reading.following, reading.predicts
        predicted += len(following)
        for row, strength in enumerate(strengths):
            with model.intervene(bias=bias, strength=strength), model.record() as record:
                logits = reading.logits(model)
            theirs, total = _weight_on(record, own)
            losses = token_losses(logits[keep], following).sum()
            sums[row] += theirs, total, divergence(plain, logits).sum(), losses
    if not predicted:
        raise ValueError("[intent] every text has one token; two or more are required")
    return Intent(
        bias.name,
        np.array(strengths, np.float64),
        sums[:, 0] / np.maximum(sums[:, 1], 1e-30),
        sums[:, 2] / tokens,
        sums[:, 3] / predicted,
        own,
    )


def _weight_on(record: Record, own: Mapping[int, list[int]]) -> tuple[float, float]:
    """Routing weight on the given experts, and in all, of the layers that have some."""
    theirs = total = 0.0
    for place, layer in enumerate(record.layers):
        if int(layer) in own:
            weights = record.weights[:, place].astype(np.float64)
            total += weights.sum()
            theirs += weights[np.isin(record.experts[:, place], own[int(layer)])].sum()
    return theirs, total
