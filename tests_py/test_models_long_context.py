"""LongRoPE: within the trained length and beyond, in one pass, as transformers has it."""

from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch

import moekit as mk
from moekit import generate

TRAINED, LONGEST = 12, 50


def saved(path: Path, family: str, pairs: int, **more: Any) -> Any:
    rng = np.random.default_rng(5)
    rope = {
        "rope_type": "longrope",
        "rope_theta": 9000.0,
        "short_factor": (1 + rng.random(pairs)).tolist(),
        "long_factor": (1 + 4 * rng.random(pairs)).tolist(),
        "original_max_position_embeddings": TRAINED,
        **more,
    }
    model = checkpoints.tiny_model(
        family,
        3,
        rope_parameters=rope,
        max_position_embeddings=LONGEST,
        original_max_position_embeddings=TRAINED,
    )
    checkpoints.save(model, path)
    return model


@pytest.mark.parametrize(
    ("family", "pairs", "more"),
    [
        ("phimoe", 0, {"short_mscale": 1.2, "long_mscale": 1.4}),
        ("qwen3_moe", 0, {}),
        ("olmoe", 0, {"attention_factor": 1.3}),
        ("deepseek_v3", 3, {}),
        ("gpt_oss", 0, {"factor": 3.0}),
    ],
)
def test_prompts_of_every_length_are_transformers(
    tmp_path: Path, family: str, pairs: int, more: dict[str, Any]
) -> None:
    if family != "deepseek_v3":  # whose rotated part is given
        config = checkpoints.tiny_config(family)
        size = getattr(config, "head_dim", None)
        pairs = (size or config.hidden_size // config.num_attention_heads) // 2
    theirs = saved(tmp_path / "m", family, pairs, **more)
    mine = mk.load(tmp_path / "m")
    rng = np.random.default_rng(1)
    for length in (1, TRAINED - 1, TRAINED, TRAINED + 1, 30, LONGEST):
        ids = rng.integers(0, 97, length)
        with torch.no_grad():
            wanted = theirs(torch.tensor(ids)[None]).logits[0].numpy()
        found = mine.forward(ids)
        np.testing.assert_allclose(found, wanted, atol=2e-4, rtol=0)
    # Sequences of a batch each go by their own length.
    both = [rng.integers(0, 97, n) for n in (TRAINED, TRAINED + 7)]
    for alone, found in zip(both, mine.forward(both), strict=True):
        assert mine.forward(alone).tobytes() == found.tobytes()


@pytest.mark.parametrize("rows", [4, 512])
def test_generations_grow_past_the_trained_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Phi-3.5-MoE's, for which transformers reads the sequence anew there; alone and in a batch."""
    monkeypatch.setattr(generate, "PREFILL_ROWS", rows)
    size = checkpoints.tiny_config("phimoe").hidden_size // 3
    theirs = saved(tmp_path / "m", "phimoe", size // 2, short_mscale=1.2, long_mscale=1.4)
    mine = mk.load(tmp_path / "m")
    rng = np.random.default_rng(2)
    prompts = [rng.integers(0, 97, n).tolist() for n in (1, TRAINED - 2, TRAINED, TRAINED + 9)]
    alone = [mine.generate(ids, max_new_tokens=16) for ids in prompts]
    assert alone == [checkpoints.their_greedy(theirs, ids, 16) for ids in prompts]
    assert mine.generate(prompts, max_new_tokens=16) == alone


def test_a_family_with_one_table_refuses_it(tmp_path: Path, checkpoint_maker: Any) -> None:
    _, path = checkpoint_maker("jetmoe", 0)
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 12, "long_factor": [2.0] * 12}
    copy = tmp_path / "m"
    copy.mkdir()
    for file in Path(path).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    checkpoints.rewrite_config(copy, rope_parameters={**rope, "rope_theta": 1e4})
    with pytest.raises(mk.FileError, match="longrope"):
        mk.load(copy)
