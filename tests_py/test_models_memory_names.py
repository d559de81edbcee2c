"""Checkpoints under the names that transformers has in memory, and how they are saved."""

from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from family_checks import TOLERANCE, prompt_of
from saved_families import BOTH, CHANGES, EVERY, HYBRIDS

import moekit as mk
from moekit.saving.gguf_states import STATES


@pytest.mark.parametrize("family", EVERY)
def test_names_that_transformers_has_in_memory(tmp_path: Path, family: str) -> None:
    theirs = checkpoints.tiny_model(family, 6)
    checkpoints.save(theirs, tmp_path / "in", save_original_format=False)
    ids = prompt_of(4, 12)
    model = mk.load(tmp_path / "in")
    logits = model.forward(ids)
    wanted = checkpoints.their_logits(theirs, ids)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=TOLERANCE)
    model.save(tmp_path / "out")
    assert mk.load(tmp_path / "out").forward(ids).tobytes() == logits.tobytes()
    np.testing.assert_array_equal(reopened_logits(theirs, tmp_path / "out", ids), wanted)


def reopened_logits(theirs: Any, path: Path, ids: list[int]) -> np.ndarray:
    """Of the checkpoint at `path` in transformers, as the class of `theirs`."""
    again = type(theirs).from_pretrained(path, attn_implementation="eager", dtype="float32")
    again.set_experts_implementation("eager")
    return checkpoints.their_logits(again.eval(), ids)


@pytest.mark.parametrize("family", [*BOTH, *STATES])
def test_names_of_memory_make_the_same_gguf_file(
    checkpoint_maker: Any, tmp_path: Path, family: str
) -> None:
    changes = {**CHANGES, **HYBRIDS}.get(family, {})
    theirs, published = checkpoint_maker(family, 4, **changes)
    checkpoints.save(theirs, tmp_path / "in", save_original_format=False)
    model = mk.load(tmp_path / "in")
    model.save(tmp_path / "x.gguf")
    mk.load(published).save(tmp_path / "y.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "y.gguf").read_bytes()
    ids = prompt_of(4, 12)
    found, wanted = mk.load(tmp_path / "x.gguf").forward(ids), model.forward(ids)
    if family == "qwen3_5_moe_text":  # columns have changed places
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)
    else:
        assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("in_memory", [False, True])
def test_longcat_flash_is_saved_under_its_published_names(
    tmp_path: Path, quantised: bool, in_memory: bool
) -> None:
    """Its bank of gates has zero experts too, whose halves transformers wants to find."""
    theirs = checkpoints.tiny_model("longcat_flash", 6)
    options = {"dtype": torch.bfloat16, "save_original_format": not in_memory}
    checkpoints.save(theirs, tmp_path / "in", **options)
    checkpoints.save(theirs, tmp_path / "published", torch.bfloat16)
    model = mk.load(tmp_path / "in")
    if quantised:
        mk.quantize(tmp_path / "in", "bf16", out=tmp_path / "own")
        model = mk.load(tmp_path / "own")
    model.save(tmp_path / "out")
    with mk.checkpoint.open_model(tmp_path / "published") as file:
        published = {name: (file.info(name).dtype, file.info(name).shape) for name in file}
    with mk.checkpoint.open_model(tmp_path / "out") as file:
        written = {name: (file.info(name).dtype, file.info(name).shape) for name in file}
    assert "model.layers.1.mlp.experts.7.up_proj.weight" in written
    # A bias of the router that transformers keeps and does not add.
    unused = {name for name in published if name.endswith("router.classifier.bias")}
    assert written == {name: said for name, said in published.items() if name not in unused}
    ids = prompt_of(4, 12)
    wanted = checkpoints.their_logits(theirs, ids)
    np.testing.assert_array_equal(reopened_logits(theirs, tmp_path / "out", ids), wanted)
