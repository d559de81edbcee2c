"""What every family has to pass: transformers' logits, experts and greedy tokens, and a token's
bytes that no batch and no cut of its prompt changes."""

from pathlib import Path
from typing import Any

import checkpoints
import numpy as np

import moekit as mk

# Between two float32 programs that add in different orders.
TOLERANCE = 2e-4


def prompt_of(seed: int, length: int, vocab: int = 97) -> list[int]:
    """Random token ids."""
    return np.random.default_rng(seed).integers(0, vocab, length).tolist()


def logits_and_experts(theirs: Any, path: Path, seed: int, length: int = 23) -> None:
    """The same logits, and the same experts in every layer that has any."""
    ids = prompt_of(seed, length)
    model = mk.load(path)
    with model.record() as record:
        logits = model.forward(ids)
    assert logits.dtype == np.float32
    expected = checkpoints.their_logits(theirs, ids)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)
    chosen = checkpoints.their_experts(theirs, ids)
    assert len(chosen) == len(record.layers)
    for layer, experts in enumerate(chosen):
        np.testing.assert_array_equal(np.sort(record.experts[:, layer], axis=1), experts)
    # A recorded pass and a plain one take different ways to the same bytes.
    assert model.forward(ids).tobytes() == logits.tobytes()
    assert model.forward(ids, routing=record).tobytes() == logits.tobytes()


def greedy_tokens(theirs: Any, path: Path, length: int = 9, count: int = 12) -> None:
    """The same greedy text, with a cache and without."""
    model = mk.load(path)
    ids = prompt_of(7, length)
    tokens = model.generate(ids, max_new_tokens=count)
    assert tokens == checkpoints.their_greedy(theirs, ids, count)
    # And without a cache: the whole text again for every token.
    whole = list(ids)
    for token in tokens:
        assert int(model.forward(whole)[-1].argmax()) == token
        whole.append(token)


def same_bytes(path: Path, length: int = 17) -> None:
    """A token's logits do not depend on its batch or on how its prompt was cut."""
    model = mk.load(path)
    prompts = [prompt_of(i, n) for i, n in enumerate((length, 1, 6))]
    alone = [model.forward(prompt) for prompt in prompts]
    for ours, one in zip(model.forward(prompts), alone, strict=True):
        assert ours.tobytes() == one.tobytes()
    for cuts in ([1] * length, [5, length - 6, 1], [length - 1, 1]):
        cache = model.new_cache()
        parts, start = [], 0
        for size in cuts:
            parts.append(model.forward(prompts[0][start : start + size], cache=cache))
            start += size
        assert np.concatenate(parts).tobytes() == alone[0].tobytes()
    square = np.array([prompts[0], prompt_of(9, length)])
    both = model.forward(square)
    assert both.shape == (2, length, 97)
    assert both[0].tobytes() == alone[0].tobytes()
