"""Families that carry states against transformers: logits, experts, greedy tokens, bytes; and what
an interrupted pass leaves behind."""

from pathlib import Path
from typing import Any

import checkpoints
import family_checks
import numpy as np
import pytest
import torch
import transformers
from family_checks import prompt_of
from recurrent_families import CASES, FIELDS

import moekit as mk
from moekit import _core

NAMES = [f"{family}-{'-'.join(changes) or 'plain'}" for family, changes in CASES]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("family", "changes"), CASES, ids=NAMES)
def test_logits_and_experts_are_those_of_transformers(
    checkpoint_maker: Any, family: str, changes: dict[str, Any], seed: int
) -> None:
    family_checks.logits_and_experts(*checkpoint_maker(family, seed, **changes), seed)


@pytest.mark.parametrize(("family", "changes"), CASES, ids=NAMES)
def test_greedy_tokens_are_those_of_transformers(
    checkpoint_maker: Any, family: str, changes: dict[str, Any]
) -> None:
    family_checks.greedy_tokens(*checkpoint_maker(family, 1, **changes))


@pytest.mark.parametrize(("family", "changes"), CASES, ids=NAMES)
def test_a_token_has_the_same_bytes_however_it_is_batched(
    checkpoint_maker: Any, family: str, changes: dict[str, Any]
) -> None:
    family_checks.same_bytes(checkpoint_maker(family, 0, **changes)[1])


@pytest.mark.parametrize("family", FIELDS)
@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_formats_and_threads_keep_a_tokens_bytes(
    checkpoint_maker: Any, family: str, format: str
) -> None:
    model = mk.load(checkpoint_maker(family, 1)[1], format=format)
    prompts = [prompt_of(4, 11), prompt_of(5, 3)]
    alone = [model.forward(prompt).tobytes() for prompt in prompts]
    assert [logits.tobytes() for logits in model.forward(prompts)] == alone
    cache = model.new_cache()
    parts = [model.forward(prompts[0][a:b], cache=cache) for a, b in ((0, 1), (1, 9), (9, 11))]
    assert np.concatenate(parts).tobytes() == alone[0]
    threads = _core.num_threads()
    try:
        for count in (1, 3):
            _core.set_num_threads(count)
            assert model.forward(prompts[0]).tobytes() == alone[0]
    finally:
        _core.set_num_threads(threads)


@pytest.mark.parametrize("family", FIELDS)
def test_forks_and_restarts(checkpoint_maker: Any, family: str) -> None:
    model = mk.load(checkpoint_maker(family, 0)[1])
    first, second = prompt_of(1, 8), prompt_of(2, 3)
    cache = model.new_cache()
    model.forward([first, second], cache=cache)
    assert cache.lengths == [8, 3]
    fork = cache.fork()
    left = model.forward([[5, 6], [7]], cache=cache)
    right = model.forward([[9], [10, 11]], cache=fork)
    assert left[0].tobytes() == model.forward([*first, 5, 6])[-2:].tobytes()
    assert left[1].tobytes() == model.forward([*second, 7])[-1:].tobytes()
    assert right[0].tobytes() == model.forward([*first, 9])[-1:].tobytes()
    assert right[1].tobytes() == model.forward([*second, 10, 11])[-2:].tobytes()
    assert cache.lengths == [10, 4]
    assert fork.lengths == [9, 5]
    if cache.sequences[0].state:
        with pytest.raises(ValueError, match="recurrent layers"):
            cache.truncate(3)
    cache.truncate(0)
    again = model.forward([first, second], cache=cache)
    assert again[0].tobytes() == model.forward(first).tobytes()


class Interrupted(BaseException):
    """What Ctrl-C is, raised at a chosen place."""


class StopsAfter:
    """A layer that does its work, and then the user presses Ctrl-C."""

    def __init__(self, block: Any) -> None:
        self._block = block

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def __call__(self, *args: Any) -> Any:
        self._block(*args)
        raise Interrupted


@pytest.mark.parametrize("family", FIELDS)
def test_an_interrupted_pass_leaves_no_trace(checkpoint_maker: Any, family: str) -> None:
    model = mk.load(checkpoint_maker(family, 0)[1])
    prompts, more = [prompt_of(3, 7), prompt_of(4, 2)], [[1, 2, 3], [4]]
    expected = model.forward([[*a, *b] for a, b in zip(prompts, more, strict=True)])
    for stop, block in enumerate(model.layers):
        cache = model.new_cache()
        # The very first pass, then one that continues.
        for tokens, lengths in ((prompts, [0, 0]), (more, [7, 2])):
            model.layers[stop] = StopsAfter(block)
            with pytest.raises(Interrupted):
                model.forward(tokens, cache=cache)
            model.layers[stop] = block
            assert cache.lengths == lengths
            logits = model.forward(tokens, cache=cache)
        for found, whole in zip(logits, expected, strict=True):
            assert found.tobytes() == whole[-len(found) :].tobytes()


@pytest.mark.parametrize("family", FIELDS)
def test_routing_is_recorded_and_changed_at_the_models_own_layers(
    checkpoint_maker: Any, family: str
) -> None:
    model = mk.load(checkpoint_maker(family, 0)[1])
    ids = prompt_of(6, 9)
    plain = model.forward(ids)
    last = model.moe_layers[-1]
    with model.record(logits=True) as record, model.intervene(mask={(last, 0)}, k={last: 1}):
        changed = model.forward(ids)
    assert record.layers.tolist() == model.moe_layers
    place = record.layer_index(last)
    assert not (record.experts[:, place] == 0).any()
    assert ((record.experts[:, place] >= 0).sum(axis=-1) == 1).all()
    assert changed.tobytes() != plain.tobytes()
    with model.intervene():
        assert model.forward(ids).tobytes() == plain.tobytes()
    moe = model.layers[last].moe
    assert moe is not None
    with model.record() as record:
        model.forward(ids)
    assert model.forward(ids, routing=record).tobytes() == plain.tobytes()


PICTURES: dict[str, dict[str, Any]] = {
    "qwen3_5_moe": {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 72,
        "num_position_embeddings": 16,
    },
    "gemma4": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    },
}


@pytest.mark.parametrize("family", PICTURES)
def test_the_text_model_of_a_wrapped_checkpoint(family: str, tmp_path: Path) -> None:
    # Heads of values as wide as those of keys, which GGUF has to have.
    changes = {"gemma4": {"vocab_size": 300}, "qwen3_5_moe": {"linear_value_head_dim": 10}}[family]
    text = checkpoints.tiny_config(f"{family}_text", **changes).to_dict()
    config = transformers.AutoConfig.for_model(
        family, text_config=text, vision_config=PICTURES[family], audio_config=None
    )
    theirs = checkpoints.random_model(config, 3, "AutoModelForImageTextToText")
    checkpoints.save(theirs, tmp_path)
    ids = prompt_of(5, 19)
    logits = mk.load(tmp_path).forward(ids)
    expected = checkpoints.their_logits(theirs, ids)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=family_checks.TOLERANCE)
    # Saved it is the text model alone.
    mk.load(tmp_path).save(tmp_path / "text")
    assert mk.load(tmp_path / "text").forward(ids).tobytes() == logits.tobytes()
    kind = transformers.AutoModelForCausalLM
    again = kind.from_pretrained(tmp_path / "text", attn_implementation="eager", dtype="float32")
    again.set_experts_implementation("eager")
    expected = checkpoints.their_logits(again, ids)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=family_checks.TOLERANCE)
    packed = mk.quantize(tmp_path, {"default": "int8"}, out=tmp_path / "packed").forward(ids)
    assert mk.load(tmp_path / "packed").forward(ids).tobytes() == packed.tobytes()
    if family == "qwen3_5_moe":
        mk.load(tmp_path).save(tmp_path / "x.gguf")
        found = mk.load(tmp_path / "x.gguf").forward(ids)
        np.testing.assert_allclose(found, logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_minimax_in_16_bits_has_exact_decays(tmp_path: Path, dtype: torch.dtype) -> None:
    """Transformers writes its tables of decays in the checkpoint's dtype, and computes with what
    is left of them; here they follow from the configuration."""
    theirs = checkpoints.tiny_model("minimax", 3)
    tables = {name: table.clone() for name, table in theirs.named_buffers()}
    path = checkpoints.save(theirs, tmp_path / "m", dtype=dtype)
    ids = prompt_of(3, 40)
    found = mk.load(path, format="f32").forward(ids)
    rounded = checkpoints.their_logits(theirs, ids)
    with torch.no_grad():
        for name, table in theirs.named_buffers():
            table.copy_(tables[name])
    exact = checkpoints.their_logits(theirs, ids)
    np.testing.assert_allclose(found, exact, rtol=0, atol=family_checks.TOLERANCE)
    assert np.abs(rounded - exact).max() > 10 * np.abs(found - exact).max()
