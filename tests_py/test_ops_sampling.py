"""Sampling against transformers' logits processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from moekit import ops


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.7, 0, 1.0, 0.0),
        (1.0, 5, 1.0, 0.0),
        (1.5, 0, 0.8, 0.0),
        (1.0, 0, 1.0, 0.2),
        (0.9, 12, 0.9, 0.05),
    ],
)
def test_draws_from_transformers_distribution(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = normal(30)
    scores = torch.from_numpy(logits)[None]
    for warper in (
        hf.TemperatureLogitsWarper(temperature),
        hf.TopKLogitsWarper(top_k or 30),
        hf.TopPLogitsWarper(top_p),
        hf.MinPLogitsWarper(min_p),
    ):
        scores = warper(None, scores)
    expected = scores.softmax(-1)[0].double().numpy()
    draws = 20_000
    ids = ops.sample(
        np.broadcast_to(logits, (draws, 30)),
        temperature,
        top_k,
        top_p,
        min_p,
        seed=11,
        step=np.arange(draws),
    )
    assert ids.dtype == np.int64
    counts = np.bincount(ids, minlength=30)
    assert (counts[expected == 0] == 0).all()
    kept = expected > 0
    chi2 = ((counts - draws * expected)[kept] ** 2 / (draws * expected[kept])).sum()
    # Fixed seed: a margin, not a gamble. Chi-square's mean is n - 1, its deviation sqrt(2 (n - 1)).
    degrees = max(int(kept.sum()) - 1, 1)
    assert chi2 < degrees + 5 * np.sqrt(2 * degrees)


def test_greedy_is_argmax() -> None:
    logits = normal(7, 1000)
    np.testing.assert_array_equal(ops.sample(logits), logits.argmax(1))
    logits[:, 100] = logits[:, 900] = 99.0
    assert (ops.sample(logits, seed=5) == 100).all()
    assert ops.sample(logits[0]) == 100
    assert ops.sample(torch.from_numpy(logits).bfloat16()).tolist() == [100] * 7


def test_a_row_depends_on_its_seed_and_step_alone() -> None:
    logits = normal(6, 500)
    seeds, steps = [1, 2, 3, 1, 2, 3], [0, 0, 0, 9, 9, 9]
    many = ops.sample(logits, 1.0, seed=seeds, step=steps)
    single = [
        ops.sample(row, 1.0, seed=seed, step=step)
        for row, seed, step in zip(logits, seeds, steps, strict=True)
    ]
    assert many.tolist() == single
    same = np.broadcast_to(logits[0], (50, 500))
    assert len(set(ops.sample(same, 1.0, seed=4).tolist())) == 1
    assert len(set(ops.sample(same, 1.0, seed=4, step=np.arange(50)).tolist())) > 10
    # Without a seed every call has its own.
    assert len({int(ops.sample(logits[0], 1.0)) for _ in range(40)}) > 3


def test_mistakes_are_named() -> None:
    logits = normal(2, 9)
    for arguments, text in [
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"seed": [1, 2, 3]}, "seed has 3 entries; 1 or 2"),
    ]:
        with pytest.raises(ValueError, match=text):
            ops.sample(logits, **arguments)
    with pytest.raises(TypeError, match="seed is 'x'"):
        ops.sample(logits, 1.0, seed="x")
    for bad, text in [(np.nan, "row 1 of the logits holds nan"), (np.inf, "row 1 is inf")]:
        hurt = logits.copy()
        hurt[1, 3] = bad
        with pytest.raises(ValueError, match=text):
            ops.sample(hurt, 0.5)
    with pytest.raises(ValueError, match="row 0 is -inf"):
        ops.sample(np.full((1, 4), -np.inf))
    with pytest.raises(ValueError, match="no columns"):
        ops.sample(np.zeros((2, 0)))
    assert ops.sample(np.zeros((0, 4))).shape == (0,)
