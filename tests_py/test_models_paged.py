"""Experts that stay in the file: the same bytes, bounded memory, and what happens at the bounds."""

import gc
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import gguf_converter
import numpy as np
import pytest

import moekit as mk
from moekit.ops.paged_experts import PagedExperts

IDS = np.random.default_rng(0).integers(0, 97, 40).tolist()
CASES: list[tuple[str, dict[str, Any]]] = [
    ("mixtral", {}),
    ("qwen3_moe", {"num_experts": 9, "num_experts_per_tok": 3, "mlp_only_layers": [1]}),
    ("deepseek_v3", {"n_routed_experts": 7}),
    ("gpt_oss", {}),
    ("qwen2_moe", {}),
    ("dbrx", {}),
]


def sizes(path: Path, format: str | None = None) -> tuple[int, int, int]:
    """(bytes without experts, bytes of one expert, experts of all layers)."""
    model = mk.load(path, format=format)
    experts = [model.layers[n].moe.experts for n in model.moe_layers]
    total = sum(model.memory().values())
    count = sum(e.count for e in experts)
    one = experts[0].nbytes // experts[0].count
    return total - one * count, one, count


@pytest.mark.parametrize("format", [None, "int8"])
@pytest.mark.parametrize(("family", "changes"), CASES, ids=[c[0] for c in CASES])
def test_same_bytes_in_bounded_memory(
    checkpoint_maker: Any, family: str, changes: dict[str, Any], format: str | None
) -> None:
    _, path = checkpoint_maker(family, 0, **changes)
    wanted = mk.load(path, format=format)
    others, one, count = sizes(path, format)
    k = wanted.layers[wanted.moe_layers[0]].moe.gate.k
    for held in (k, k + 1, count - 1):
        model = mk.load(path, format=format, max_memory=others + held * one)
        assert isinstance(model.layers[model.moe_layers[0]].moe.experts, PagedExperts)
        assert sum(model.memory().values()) <= others + 100
        assert model.forward(IDS).tobytes() == wanted.forward(IDS).tobytes()
        assert 0 < model.pages.nbytes <= held * one
        assert sum(model.memory().values()) <= others + held * one
        text = model.generate(IDS[:5], max_new_tokens=6)
        assert text == wanted.generate(IDS[:5], max_new_tokens=6)
    with model.record() as record:
        model.forward(IDS[:7])
    assert model.forward(IDS[:7], routing=record).shape == (7, 97)


def test_used_experts_are_not_read_again(checkpoint_maker: Any) -> None:
    _, path = checkpoint_maker("mixtral", 0)
    others, one, count = sizes(path)
    model = mk.load(path, max_memory=others + (count - 1) * one)
    model.forward([5])
    loads = model.pages.loads
    model.forward([5])
    assert model.pages.loads == loads
    # Layers take turns: with room for a token's experts of each, a repeated token costs nothing.
    model = mk.load(path, max_memory=others + 6 * one)
    model.forward([5])
    assert model.pages.loads == 6
    for _ in range(3):
        model.forward([5])
    assert model.pages.loads == 6


def test_all_of_it_is_loaded_where_it_fits(checkpoint_maker: Any) -> None:
    _, path = checkpoint_maker("mixtral", 0)
    others, one, count = sizes(path)
    model = mk.load(path, max_memory=others + count * one)
    assert model.pages is None
    assert not isinstance(model.layers[0].moe.experts, PagedExperts)


def test_too_little_is_said_with_the_arithmetic(checkpoint_maker: Any) -> None:
    _, path = checkpoint_maker("mixtral", 0)
    others, one, _ = sizes(path)
    with pytest.raises(MemoryError, match=rf"2 experts of {one} bytes.* {others + 2 * one} bytes"):
        mk.load(path, max_memory=others + 2 * one - 1)
    with pytest.raises(MemoryError, match="experts not counted"):
        mk.load(path, max_memory=others // 2)
    for bad in (0, -1, 1.5, True, "8"):
        with pytest.raises(ValueError, match="max_memory"):
            mk.load(path, max_memory=bad)


def test_more_experts_than_fit_for_one_token(checkpoint_maker: Any) -> None:
    _, path = checkpoint_maker("mixtral", 0)
    others, one, _ = sizes(path)
    model = mk.load(path, max_memory=others + 2 * one)
    with model.intervene(k={"*": 4}), pytest.raises(MemoryError, match="max_memory"):
        model.forward([1, 2])
    assert model.forward([1, 2]).shape == (2, 97)


def test_a_gguf_file_is_paged_as_well(checkpoint_maker: Any, tmp_path: Path) -> None:
    _, source = checkpoint_maker("mixtral", 2, num_key_value_heads=3)
    gguf_converter.convert(source, tmp_path / "x.gguf")
    others, one, _ = sizes(tmp_path / "x.gguf")
    model = mk.load(tmp_path / "x.gguf", max_memory=others + 3 * one)
    wanted = mk.load(tmp_path / "x.gguf").forward(IDS)
    assert model.forward(IDS).tobytes() == wanted.tobytes()
    model.save(tmp_path / "out")
    assert mk.load(tmp_path / "out").forward(IDS).tobytes() == wanted.tobytes()


def test_a_file_that_shrinks_meanwhile(checkpoint_maker: Any, tmp_path: Path) -> None:
    _, source = checkpoint_maker("mixtral", 0)
    path = Path(shutil.copytree(source, tmp_path / "copy"))
    others, one, _ = sizes(path)
    model = mk.load(path, max_memory=others + 2 * one)
    file = path / "model.safetensors"
    os.truncate(file, 20_000)
    with pytest.raises(mk.FileError, match="shrank"):
        model.forward(IDS)


def test_several_threads_share_the_pages(checkpoint_maker: Any) -> None:
    _, path = checkpoint_maker("mixtral", 0)
    others, one, _ = sizes(path)
    model = mk.load(path, max_memory=others + 4 * one)
    prompts = [np.random.default_rng(n).integers(0, 97, 9).tolist() for n in range(4)]
    wanted = [model.forward(prompt).tobytes() for prompt in prompts]
    found: dict[int, bytes] = {}

    def run(n: int) -> None:
        for _ in range(3):
            found[n] = model.forward(prompts[n]).tobytes()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(4)] == wanted
    assert model.pages.nbytes <= 4 * one


def test_the_file_is_given_back(checkpoint_maker: Any) -> None:
    _, path = checkpoint_maker("mixtral", 0)
    others, one, _ = sizes(path)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    model = mk.load(path, max_memory=others + 2 * one)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del model
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_expert_that_is_not_in_the_file(checkpoint_maker: Any) -> None:
    _, path = checkpoint_maker("mixtral", 0)
    others, one, _ = sizes(path)
    model = mk.load(path, max_memory=others + 3 * one)
    experts = model.layers[model.moe_layers[0]].moe.experts
    chosen = mk.Assignment([[0, 1], [1, experts.count]], np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match=rf"token 1, slot 1 has expert {experts.count}; "):
        mk.ops.moe_ffn(np.zeros((2, experts.hidden), np.float32), chosen, experts)
