"""What `model.save` writes: loaded again, by transformers and by llama.cpp it is the same model."""

import errno
import os
from pathlib import Path
from typing import Any

import checkpoints
import gguf_converter
import llama_cpp_oracle
import numpy as np
import pytest
import test_models_gguf
import test_models_spellings
import tokenizers
import torch
import transformers
from saved_families import BOTH, CHANGES, EVERY, IDS, WRITTEN
from tokenizers import pre_tokenizers

import moekit as mk
from moekit.checkpoint import target
from moekit.checkpoint.ggml_types import QUANTISED

# Types that the core keeps and llama.cpp has kernels for.
GGML_FILES = (
    *("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"),
    *("mxfp4", "iq4_nl", "iq4_xs", "tq2_0"),
    *("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "q1_0"),
)
# ggml's GELU is a table in float16.
FAR = {"gemma4_text": 2e-2}


def their_model(path: Path, kind: Any = transformers.AutoModelForCausalLM) -> Any:
    theirs = kind.from_pretrained(path, attn_implementation="eager", dtype="float32")
    theirs.set_experts_implementation("eager")
    return theirs


@pytest.mark.parametrize("family", EVERY)
def test_a_directory_is_the_same_model_for_transformers(
    checkpoint_maker: Any, tmp_path: Path, family: str
) -> None:
    theirs, source = checkpoint_maker(family, 4)
    model = mk.load(source)
    model.save(tmp_path / "out")
    wanted = model.forward(IDS)
    assert mk.load(tmp_path / "out").forward(IDS).tobytes() == wanted.tobytes()
    found = checkpoints.their_logits(their_model(tmp_path / "out", type(theirs)), IDS)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("family", BOTH)
def test_a_gguf_file_becomes_a_directory(
    checkpoint_maker: Any, tmp_path: Path, family: str
) -> None:
    theirs, source = checkpoint_maker(family, 4, **CHANGES.get(family, {}))
    if family in WRITTEN:
        mk.load(source).save(tmp_path / "x.gguf")
    else:
        gguf_converter.convert(source, tmp_path / "x.gguf")
    model = mk.load(tmp_path / "x.gguf")
    model.save(tmp_path / "out")
    wanted = model.forward(IDS)
    assert mk.load(tmp_path / "out").forward(IDS).tobytes() == wanted.tobytes()
    found = checkpoints.their_logits(their_model(tmp_path / "out", type(theirs)), IDS)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("family", BOTH)
def test_a_gguf_file_is_the_same_model(checkpoint_maker: Any, tmp_path: Path, family: str) -> None:
    _, source = checkpoint_maker(family, 4, **CHANGES.get(family, {}))
    model = mk.load(source)
    model.save(tmp_path / "x.gguf")
    again = mk.load(tmp_path / "x.gguf")
    assert again.forward(IDS).tobytes() == model.forward(IDS).tobytes()
    # And from there once more: names and metadata have settled.
    again.save(tmp_path / "y.gguf")
    with mk.checkpoint.open(tmp_path / "x.gguf") as x, mk.checkpoint.open(tmp_path / "y.gguf") as y:
        assert list(x) == list(y)
        assert repr(dict(x.metadata)) == repr(dict(y.metadata))
    assert (tmp_path / "y.gguf").read_bytes() == (tmp_path / "x.gguf").read_bytes()


@pytest.mark.skipif(llama_cpp_oracle.find() is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("dtype", ["f32", "bf16", "q8_0"])
@pytest.mark.parametrize("family", [f for f in BOTH if f not in test_models_gguf.LLAMA_CPP_DIFFERS])
def test_llama_cpp_writes_the_same_tokens(
    checkpoint_maker: Any, tmp_path: Path, family: str, dtype: str
) -> None:
    _, source = checkpoint_maker(family, 4, **CHANGES.get(family, {}), vocab_size=320)
    checkpoints.save_tokenizer(tmp_path / "tokenizer")
    model = mk.load(source, format=dtype)
    model.tokenizer = mk.tokenizer.load_tokenizer(tmp_path / "tokenizer")
    model.save(tmp_path / "x.gguf")
    answer = llama_cpp_oracle.ask(
        tmp_path / "x.gguf", ids=IDS, count=8, texts=["the cat sat on a log, äöü 12 🙂"]
    )
    exact = mk.load(source, format=dtype)
    found = exact.forward(IDS)
    wanted = np.array(answer["logits"])
    assert np.vdot(found, wanted) > 0.8 * np.linalg.norm(found) * np.linalg.norm(wanted)
    if dtype == "f32":
        np.testing.assert_allclose(found, wanted, rtol=0, atol=FAR.get(family, 2e-3))
        assert exact.generate(IDS, max_new_tokens=8) == answer["greedy"]
    text = "the cat sat on a log, äöü 12 🙂"
    assert model.tokenizer.encode(text) == answer["texts"][0]


@pytest.mark.skipif(llama_cpp_oracle.find() is None, reason="llama-cpp-python is not installed")
@pytest.mark.filterwarnings("ignore:.*ids alone")
@pytest.mark.parametrize("name", GGML_FILES)
def test_llama_cpp_runs_quantised_files(tmp_path: Path, name: str) -> None:
    """On the shipped model: random weights choose between nearly equal tokens and experts."""
    model = mk.load(mk.demo_path(), format=name)
    model.save(tmp_path / "x.gguf")
    with mk.checkpoint.open(tmp_path / "x.gguf") as file:
        assert name.upper() in {file.info(tensor).dtype for tensor in file}
    ids = model.tokenizer.encode("def main():\n    parser = argparse.ArgumentParser()\n    parser")
    answer = llama_cpp_oracle.ask(tmp_path / "x.gguf", ids=ids, count=24)
    found, wanted = model.forward(ids), np.array(answer["logits"])
    assert np.vdot(found, wanted) > 0.998 * np.linalg.norm(found) * np.linalg.norm(wanted)
    # Both round activations, each in its own way: only a choice that is none may differ.
    after = model.forward(ids + answer["greedy"])[len(ids) - 1 : -1]
    lost = after.max(1) - after[np.arange(24), answer["greedy"]]
    assert lost.max() < 0.5
    assert np.count_nonzero(lost) <= 3


# NVFP4's scales and TQ1_0's digits of base 3 are kept in another form; their values fit float16.
_GGML = [name.lower() for name in QUANTISED if name not in ("NVFP4", "TQ1_0")]


@pytest.mark.parametrize("name", sorted({*_GGML} & {*mk.ops.format_names()}))
def test_blocks_are_written_as_they_are(checkpoint_maker: Any, tmp_path: Path, name: str) -> None:
    # The experts' gates have 24 rows and the keys 8: panels of 16 are not full.
    _, source = checkpoint_maker(
        "qwen3_moe",
        4,
        hidden_size=256,
        moe_intermediate_size=24,
        head_dim=8,
        num_attention_heads=32,
        num_key_value_heads=1,
    )
    model = mk.load(source, format=name)
    model.save(tmp_path / "x.gguf")
    with mk.checkpoint.open(tmp_path / "x.gguf") as file:
        for written in ("ffn_gate_exps", "attn_k", "attn_output"):
            assert file.info(f"blk.1.{written}.weight").dtype == name.upper()
    again = mk.load(tmp_path / "x.gguf")
    for mine, theirs in zip(model.placed, again.placed, strict=False):
        if mine.slot >= 0 and mine.weight.format == name and ".down_proj" not in mine.piece.name:
            assert theirs.weight.format == name
            np.testing.assert_array_equal(
                mine.weight.unpack_expert(mine.slot), theirs.weight.unpack_expert(theirs.slot)
            )


def test_other_formats_become_floats(checkpoint_maker: Any, tmp_path: Path) -> None:
    _, source = checkpoint_maker("qwen3_moe", 4)
    model = mk.load(source, format="int8")
    model.save(tmp_path / "out")
    with mk.checkpoint.open_model(tmp_path / "out") as file:
        kinds = {file.info(name).dtype for name in file if name.endswith("gate_proj.weight")}
    assert kinds == {"BF16"}
    model.save(tmp_path / "x.gguf")
    with mk.checkpoint.open(tmp_path / "x.gguf") as file:
        assert file.info("blk.0.ffn_gate_exps.weight").dtype == "F16"
        wanted = model.layers[0].moe.experts.gate.unpack()
        np.testing.assert_allclose(file["blk.0.ffn_gate_exps.weight"], wanted, rtol=1e-3, atol=1e-6)


def test_half_precision_stays(checkpoint_maker: Any, tmp_path: Path) -> None:
    theirs = checkpoints.tiny_model("deepseek_v3", 4)
    source = checkpoints.save(theirs, tmp_path / "bf16", dtype=torch.bfloat16)
    model = mk.load(source)
    model.save(tmp_path / "out")
    with mk.checkpoint.open_model(tmp_path / "out") as new, mk.checkpoint.open_model(source) as old:
        assert {n: new.info(n).dtype for n in new} == {n: old.info(n).dtype for n in old}
        for name in old:
            np.testing.assert_array_equal(new.blocks(name), old.blocks(name))


def test_tokenizer_and_ends_go_along(talker_path: Path, tmp_path: Path) -> None:
    talker = mk.load(talker_path)
    talker.end_ids = (0, 7)
    talker.save(tmp_path / "out")
    talker.save(tmp_path / "x.gguf")
    text = "Sort the items, näive 🙂"
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [{"role": "user", "content": "hello"}]
    for path in ("out", "x.gguf"):
        again = mk.load(tmp_path / path)
        assert again.tokenizer.encode(text) == talker.tokenizer.encode(text)
        assert again.tokenizer.special == talker.tokenizer.special
        assert again.end_ids == talker.end_ids
        assert again.chat(messages, max_new_tokens=5) == talker.chat(messages, max_new_tokens=5)
        assert again.generate(text, max_new_tokens=9) == talker.generate(text, max_new_tokens=9)
    assert theirs(text).input_ids == talker.tokenizer.encode(text)
    assert theirs.apply_chat_template(messages, tokenize=False)


def test_a_checkpoint_takes_the_place_of_another(checkpoint_maker: Any, tmp_path: Path) -> None:
    _, source = checkpoint_maker("mixtral", 4)
    _, other = checkpoint_maker("qwen3_moe", 4)
    (tmp_path / "empty").mkdir()
    for path in ("out", "empty"):
        mk.load(source).save(tmp_path / path)
        mk.load(other).save(tmp_path / path)
        assert mk.load(tmp_path / path).config["model_type"] == "qwen3_moe"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match="empty directory"):
        mk.load(source).save(tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["diary.txt"]


@pytest.mark.parametrize("name", ["out", "x.gguf"])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(
    checkpoint_maker: Any,
    tmp_path: Path,
    monkeypatch: Any,
    name: str,
    before: bool,
    error: BaseException,
) -> None:
    model = mk.load(checkpoint_maker("mixtral", 4)[1])
    path = tmp_path / name
    wanted = None
    if before:
        model.save(path)
        wanted = mk.load(path).forward(IDS)
    found = sorted(tmp_path.rglob("*"))
    written = 0
    real = os.pwrite

    def failing(fd: int, data: Any, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > 100_000:
            raise error
        return real(fd, data, offset)

    monkeypatch.setattr(target.os, "pwrite", failing)
    with pytest.raises(type(error)):
        model.save(path)
    monkeypatch.undo()
    assert sorted(tmp_path.rglob("*")) == found
    if wanted is not None:
        assert mk.load(path).forward(IDS).tobytes() == wanted.tobytes()


def test_deepseek_moe_goes_through_gguf(tmp_path: Path) -> None:
    test_models_spellings.deepseek_moe(tmp_path / "source", 5)
    model = mk.load(tmp_path / "source")
    model.save(tmp_path / "x.gguf")
    wanted = model.forward(IDS)
    again = mk.load(tmp_path / "x.gguf")
    assert again.forward(IDS).tobytes() == wanted.tobytes()
    again.save(tmp_path / "out")
    assert mk.load(tmp_path / "out").forward(IDS).tobytes() == wanted.tobytes()
    if llama_cpp_oracle.find() is None:
        return
    again.tokenizer = letters()
    again.save(tmp_path / "y.gguf")
    answer = llama_cpp_oracle.ask(tmp_path / "y.gguf", ids=IDS, count=6)
    np.testing.assert_allclose(wanted, answer["logits"], rtol=0, atol=2e-3)
    assert model.generate(IDS, max_new_tokens=6) == answer["greedy"]


def letters() -> Any:
    """A tokenizer of bytes, for files that nobody gives a text to."""
    vocab = {letter: n for n, letter in enumerate(pre_tokenizers.ByteLevel.alphabet()[:97])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return mk.tokenizer.Tokenizer(backend)


def test_a_model_made_by_hand_has_no_names(checkpoint_maker: Any, tmp_path: Path) -> None:
    loaded = mk.load(checkpoint_maker("mixtral", 4)[1])
    made = mk.nn.Model(loaded.embedding, loaded.layers, loaded.norm, loaded.head)
    with pytest.raises(ValueError, match="by hand"):
        made.save(tmp_path / "out")
