"""Texts through a model, in windows of bounded size: what the other measures are made from."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..nn import Model
from ..record import Record
from ..token_ids import sequence_of

Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int32]
# A text, token ids, or several of either.
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
        if isinstance(item, str):
            if model.tokenizer is None:
                raise ValueError("[analysis] the model has no tokenizer; token ids are required")
            item = model.tokenizer.encode(item)
        ids = sequence_of(item, model.vocab_size, f"texts[{i}]")
        found += [ids[at : at + window] for at in range(0, len(ids), window)]
    return found


def require_decoder(model: Model, op: str) -> None:
    """ValueError for a model that reads its prompt with an encoder: no token of it is predicted."""
    if model.encodes_prompt:
        raise ValueError(
            f"[{op}] the model is an encoder-decoder; one that predicts the tokens of its prompt "
            "is required"
        )


def _is_ids(texts: Any) -> bool:
    return len(texts) > 0 and isinstance(texts[0], int | np.integer)


def record_texts(model: Model, texts: Texts, window: int = 256, **options: Any) -> Record:
    """The routing of texts, each window of tokens a sequence of its own.

    `options` are those of `model.record`; open interventions apply.
    """
    windows = windows_of(model, texts, window)
    record: Record
    with model.record(**options) as record:
        for part in batches(windows, 2048):
            model.logits(part, last=True)
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


def fitting_batches(model: Model, windows: Iterable[Ids]) -> Iterator[list[Ids]]:
    """Batches whose logits [tokens, V] fit into bounded memory."""
    return batches(windows, max(1, min(2048, _LOGITS // model.vocab_size)))


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
