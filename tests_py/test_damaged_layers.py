"""Quantised layers whose small tensors are damaged: refused by name instead of becoming others."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import checkpoints
import hf_quantisers
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import moekit as mk

IDS = [3, 1, 4, 1, 5]
SCHEMES: dict[str, tuple[Callable[[np.ndarray], Any], dict[str, Any]]] = {
    "gptq": (hf_quantisers.gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32}),
    "awq": (hf_quantisers.awq, {"quant_method": "awq", "bits": 4, "group_size": 32}),
}
LAYER = "model.layers.0.block_sparse_moe.experts.0.w1."


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 96, "intermediate_size": 64, "head_dim": 32}
    model = checkpoints.tiny_model("mixtral", 0, num_hidden_layers=1, **sizes)
    return checkpoints.save(model, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("damage", ["nan", "inf", "wide zeros", "wide scales"])
def test_scales_and_zeros_of_integers(
    plain: Path, tmp_path: Path, scheme: str, damage: str
) -> None:
    quantiser, config = SCHEMES[scheme]
    hf_quantisers.quantise_checkpoint(plain, tmp_path / "q", quantiser, config)
    file = tmp_path / "q" / "model.safetensors"
    tensors = load_file(file)
    part = tensors[LAYER + ("qzeros" if "zeros" in damage else "scales")]
    if damage.startswith("wide"):
        # A word more in each group moves all zeros behind the first group's.
        wide = np.resize(part, (part.shape[0], part.shape[1] + 1))
        tensors[LAYER + ("qzeros" if "zeros" in damage else "scales")] = wide
    else:
        part[1, 5] = float(damage)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(mk.FileError, match=r"experts\.0\.w1.*(finite ones are|must be)"):
        mk.load(tmp_path / "q", format=None)


FRAME = {
    "norm.weight": "int32",
    "layers.1.ffn_norm.weight": "float64",
    "embedding": "int8",
    "layers.1.ffn.experts.up": "float32",
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "q"
    mk.quantize(mk.demo_path(), "int4", out=out)
    return out


def rewrite(folder: Path, path: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """The tensor at `path` of a packed directory exchanged, in the document as well."""
    document = json.loads((folder / "moekit.json").read_text())
    entry = document["weights"][path]
    tensors = load_file(folder / entry["file"])
    tensors[path] = change(tensors[path])
    save_file(tensors, folder / entry["file"])
    entry |= {"format": "", "shape": list(tensors[path].shape)}
    (folder / "moekit.json").write_text(json.dumps(document))


@pytest.mark.parametrize("path", FRAME)
def test_tensors_of_another_kind_in_a_packed_directory(
    packed: Path, tmp_path: Path, path: str
) -> None:
    target = tmp_path / "q"
    target.mkdir()
    for file in packed.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    rewrite(target, path, lambda x: x.astype(FRAME[path]))
    with pytest.raises(mk.FileError, match=rf"{path}.*required"):
        mk.load(target)


def test_a_vector_that_is_too_short_in_a_packed_directory(packed: Path, tmp_path: Path) -> None:
    target = tmp_path / "q"
    target.mkdir()
    for file in packed.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    rewrite(target, "norm.weight", lambda x: x[:-1].copy())
    with pytest.raises(mk.FileError, match=r"norm\.weight.* is required"):
        mk.load(target)


@pytest.mark.parametrize("damage", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{"format": "int8"}, {"format": "q4_k"}, {"format": "mxfp4"}])
@pytest.mark.parametrize("name", [f"{LAYER}weight", "model.layers.0.self_attn.o_proj.weight"])
def test_numbers_that_codes_lack(
    plain: Path, tmp_path: Path, options: dict[str, Any], name: str, damage: float
) -> None:
    copytree(plain, tmp_path / "q")
    file = tmp_path / "q" / "model.safetensors"
    tensors = load_file(file)
    tensors[name][5, 7] = damage
    save_file(tensors, file)
    with pytest.raises(mk.FileError, match=rf"{re.escape(name)}.*row 5, column 7"):
        mk.load(tmp_path / "q", **options)
    assert not np.isfinite(mk.load(tmp_path / "q").forward(IDS)).all()
