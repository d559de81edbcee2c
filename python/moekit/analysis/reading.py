"""Texts through a model, in windows of bounded size: what the other measures are made from."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..nn import Model
from ..record import Record
from ..token_ids import sequence_of

Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int32]
# A text, token ids, or several of either; pairs of either for an encoder-decoder.
Texts: TypeAlias = str | Sequence[Any] | npt.NDArray[Any]

# Logits of one window stay below this many numbers: 256 MB in float32.
_LOGITS = 1 << 26


def windows_of(model: Model, texts: Texts, window: int = 256) -> list[Ids]:
    """The tokens of all texts, cut into sequences of at most `window`.

    ValueError for no text, an empty one, and text for a model without a tokenizer.
    """
    if window < 2:
        raise ValueError(f"[analysis] window is {window}; 2 or more is required")
    items: list[Any] = [texts] if isinstance(texts, str) or _is_ids(texts) else list(texts)
    if not items:
        raise ValueError("[analysis] there are no texts")
    found = []
    for i, item in enumerate(items):
        ids = sequence_of(_ids_of(model, item), model.vocab_size, f"texts[{i}]")
        found += [ids[at : at + window] for at in range(0, len(ids), window)]
    return found


@dataclass(frozen=True)
class Reading:
    """Sequences that a model reads in one go, and the tokens that it predicts meanwhile.

    A decoder predicts the tokens of `sequences` but each one's first; an encoder-decoder reads
    them as sources and predicts `answers`.
    """

    sequences: list[Ids]
    answers: list[Ids] | None = None

    def logits(self, model: Model) -> npt.NDArray[np.float32]:
        """Float32 [rows, V]: of every token read, or of every token of the answers."""
        if self.answers is None:
            return model.logits(self.sequences)
        # What an answer's token is predicted from: the start, and the answer before it.
        reader: Any = model
        written = [np.concatenate([[reader.start_id], answer[:-1]]) for answer in self.answers]
        return np.concatenate(reader.forward(self.sequences, decoder_input_ids=written))

    @property
    def following(self) -> Ids:
        """The tokens that are predicted."""
        return np.concatenate(self.answers or [s[1:] for s in self.sequences])

    @property
    def predicts(self) -> npt.NDArray[np.bool_]:
        """Which rows of the logits predict them."""
        if self.answers is not None:
            return np.ones(sum(len(a) for a in self.answers), np.bool_)
        ends = np.cumsum([len(s) for s in self.sequences])
        rows = np.ones(int(ends[-1]), np.bool_)
        rows[ends - 1] = False
        return rows


def readings(
    model: Model, texts: Texts, window: int = 256, *, op: str, most: int | None = None
) -> Iterator[Reading]:
    """Texts as a model reads them, several at a time, so that logits [rows, V] fit into memory.

    A decoder's texts are cut into windows. An encoder-decoder wants pairs (source, answer) of
    texts or ids, which are not cut; ValueError for anything else. `most` tokens at a time.
    """
    bound = max(1, min(2048, _LOGITS // model.vocab_size)) if most is None else most
    if not model.encodes_prompt:
        for windows in batches(windows_of(model, texts, window), bound):
            yield Reading(windows)
        return
    pairs = _pairs_of(model, texts, op)
    for part in batches([np.concatenate(pair) for pair in pairs], bound):
        these, pairs = pairs[: len(part)], pairs[len(part) :]
        yield Reading([source for source, _ in these], [answer for _, answer in these])


def _pairs_of(model: Model, texts: Texts, op: str) -> list[tuple[Ids, Ids]]:
    pairs = []
    for i, item in enumerate([texts] if isinstance(texts, str) else texts):
        if not isinstance(item, tuple) or len(item) != 2:
            raise ValueError(
                f"[{op}] texts[{i}] is one text; the model is an encoder-decoder, which predicts "
                "the tokens of answers: a pair (source, answer) is required"
            )
        source, answer = (
            sequence_of(_ids_of(model, part), model.vocab_size, f"texts[{i}][{n}]")
            for n, part in enumerate(item)
        )
        pairs.append((source, answer))
    if not pairs:
        raise ValueError("[analysis] there are no texts")
    return pairs


def _ids_of(model: Model, item: Any) -> Any:
    if not isinstance(item, str):
        return item
    if model.tokenizer is None:
        raise ValueError("[analysis] the model has no tokenizer; token ids are required")
    return model.tokenizer.encode(item)


def _is_ids(texts: Any) -> bool:
    return len(texts) > 0 and isinstance(texts[0], int | np.integer)


def record_texts(model: Model, texts: Texts, window: int = 256, **options: Any) -> Record:
    """The routing of texts, each window of tokens a sequence of its own.

    `options` are those of `model.record`; open interventions apply. An encoder-decoder reads the
    windows as sources and begins an answer; of pairs (source, answer) it reads both.
    """
    record: Record
    paired = model.encodes_prompt and len(texts) > 0 and isinstance(texts[0], tuple)
    windows = [] if paired else windows_of(model, texts, window)
    with model.record(**options) as record:
        for part in batches(windows, 2048):
            model.logits(part, last=True)
        if paired:
            for reading in readings(model, texts, op="record_texts"):
                reading.logits(model)
    return record


def batches(windows: Iterable[Ids], most_tokens: int) -> Iterator[list[Ids]]:
    """Windows put together up to so many tokens, at least one each."""
    batch: list[Ids] = []
    total = 0
    for window in windows:
        if batch and total + len(window) > most_tokens:
            yield batch
            batch, total = [], 0
        batch.append(window)
        total += len(window)
    if batch:
        yield batch


def log_softmax(logits: npt.NDArray[np.float32]) -> Doubles:
    """Float64 [..., V]."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


def token_losses(logits: npt.NDArray[np.float32], following: Ids) -> Doubles:
    """-log p of each following token, in nats: float64 [T] of logits [T, V] and ids [T]."""
    # Exponentials in float32, four times as fast, summed in double: errors of some 1e-8 nats.
    top = logits.max(axis=1)
    total = np.empty(len(following))
    # In parts: a second array of a whole text and a large vocabulary would be gigabytes.
    step = max(1, (1 << 22) // logits.shape[1])
    for at in range(0, len(following), step):
        rows = slice(at, at + step)
        total[rows] = np.exp(logits[rows] - top[rows, None]).sum(axis=1, dtype=np.float64)
    chosen = logits[np.arange(len(following)), following]
    losses: Doubles = np.log(total) + (top - chosen.astype(np.float64))
    return losses


def divergence(plain: npt.NDArray[np.float32], changed: npt.NDArray[np.float32]) -> Doubles:
    """KL(plain || changed) of each row's next-token distribution, in nats: float64 [T]."""
    found = np.empty(len(plain))
    step = max(1, (1 << 24) // plain.shape[1])
    for at in range(0, len(plain), step):
        p, q = log_softmax(plain[at : at + step]), log_softmax(changed[at : at + step])
        found[at : at + step] = (np.exp(p) * (p - q)).sum(axis=-1)
    return found
