"""Quantised models in other engines' layouts, read back without moekit's own readers."""

import json
import os
import re
from pathlib import Path

import gptqmodel_oracle
import numpy as np
import pytest
from safetensors.numpy import load_file

import moekit as mk
from moekit.cli.main import main
from moekit.ops import PackedWeight
from moekit.saving.gptq import codes_of

TEXT = [p.read_text()[:1500] for p in Path(mk.demo_path(), "texts").glob("*.txt")]
RECIPE = {"default": "int4_g32", "attention": "bf16", "head": "bf16", "layers.3.*shared*": "int8"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gptq") / "q"
    model = mk.quantize(mk.demo_path(), RECIPE, TEXT, "gptq", window=256, out=folder, layout="gptq")
    return model, folder


def dequantised(tensors, base):
    """GPTQ's definition, spelled out value by value."""
    qweight = tensors[f"{base}.qweight"].view(np.uint32)
    qzeros = tensors[f"{base}.qzeros"].view(np.uint32)
    scales, g_idx = tensors[f"{base}.scales"], tensors[f"{base}.g_idx"]
    rows, cols = qweight.shape[1], qweight.shape[0] * 8
    out = np.empty((rows, cols), np.float32)
    for k in range(cols):
        codes = (qweight[k // 8] >> np.uint32(4 * (k % 8))) & 15
        for n in range(rows):
            zero = int(qzeros[g_idx[k], n // 8] >> np.uint32(4 * (n % 8))) & 15
            out[n, k] = np.float32(scales[g_idx[k], n]) * (int(codes[n]) - (zero + 1))
    return out


def test_gptq_files_mean_the_weights_to_the_bit(written):
    model, folder = written
    tensors = load_file(folder / "model.safetensors")
    places = {p.piece.name: p for p in model.placed if isinstance(p.weight, PackedWeight)}
    bases = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    # The experts of four layers, the dense layer, three shared experts.
    assert len(bases) == 4 * 32 * 3 + 3 + 3 * 3
    for base in bases[::29]:
        place = places[f"{base}.weight"]
        want = place.weight.unpack_expert(place.slot)
        # Equal, but for the sign of zero: which of two opposite scales was meant, nobody can tell.
        np.testing.assert_array_equal(dequantised(tensors, base), want, base)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["bits"], config["group_size"]) == ("gptq", 4, 32)
    assert config["sym"] and not config["desc_act"]
    # Routers and what is no four-bit integer stay plain.
    assert "model.layers.1.mlp.gate.weight" in tensors
    assert "model.layers.3.mlp.shared_experts.up_proj.weight" in tensors


def test_gptq_readers_are_told_which_layers_are_plain(written):
    """By the rules of GPTQModel and vLLM (first match from the start) and by those of optimum."""
    _, folder = written
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    (suffixes,) = config["modules_in_block_to_quantize"]
    assert all(rule.startswith("-:") for rule in config["dynamic"])
    rules = [re.compile(rule.removeprefix("-:")) for rule in config["dynamic"]]
    # GPTQModel asks for attention, experts, shared and dense layers alike; routers are Linear too.
    packed = {name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")}
    plain = {
        name.removesuffix(".weight")
        for name, value in tensors.items()
        if ".layers." in name and name.endswith(".weight") and value.ndim == 2
    }
    assert {"model.layers.1.mlp.gate", "model.layers.2.self_attn.kv_b_proj"} < plain
    assert "model.layers.3.mlp.shared_experts.up_proj" in plain
    assert "model.layers.2.mlp.shared_experts.up_proj" in packed
    for name in packed | plain:
        assert any(rule.match(name) for rule in rules) == (name in plain), name
        assert any(name.endswith(suffix) for suffix in suffixes) == (name in packed), name


@pytest.mark.skipif(gptqmodel_oracle.find() is None, reason="MOEKIT_GPTQMODEL_PYTHON is not set")
def test_gptqmodel_loads_them_and_means_the_same(written, tmp_path):
    model, folder = written
    ids = list(range(50, 80))
    places = {p.piece.name: p for p in model.placed if isinstance(p.weight, PackedWeight)}
    layers = [f"model.layers.{n}.mlp.experts.{e}.up_proj" for n, e in ((1, 0), (2, 31), (4, 7))]
    layers += ["model.layers.1.mlp.experts.3.down_proj", "model.layers.0.mlp.gate_proj"]
    found = gptqmodel_oracle.ask(folder, tmp_path / "answer.npz", ids, layers)
    for name in layers:
        place = places[f"{name}.weight"]
        want = place.weight.unpack_expert(place.slot).astype(np.float16)
        np.testing.assert_array_equal(found[name], want, name)
    # In float16 a token's experts may fall otherwise; most tokens' do not.
    want = mk.load(folder, format="f32").forward(ids)
    close = np.abs(found["logits"] - want).max(axis=1) < 0.05
    assert close.mean() > 0.7 and close[0]


def test_gptq_files_load_with_the_same_weights(written):
    model, folder = written
    wide = mk.load(folder, format="f32")
    for layer in (0, 1, 4):
        got, want = wide.layers[layer].ffn.experts, model.layers[layer].ffn.experts
        np.testing.assert_array_equal(got.down.unpack(), want.down.unpack())
        np.testing.assert_array_equal(got.gate.unpack(), want.gate.unpack())


def test_what_cannot_be_gptq_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="GPTQ"):
        mk.quantize(mk.demo_path(), "int8", out=tmp_path / "q", layout="gptq")
    with pytest.raises(ValueError, match="layout"):
        mk.quantize(mk.demo_path(), "int8", out=tmp_path / "q", layout="onnx")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("group", [32, 64, 128])
def test_codes_explain_values_whatever_their_scale(group):
    rng = np.random.default_rng(group)
    for spread in (8, 2, 1):  # few codes in use: several scales explain the values
        codes = rng.integers(-spread, spread, (24, 2 * group + 8))
        scales = (rng.normal(size=(24, 3)) * 0.02).astype(np.float16)
        wide = np.repeat(scales.astype(np.float32), group, axis=1)[:, : codes.shape[1]]
        values = (wide * codes).astype(np.float32)
        found, given = codes_of(values, group)
        again = np.repeat(given.astype(np.float32), group, axis=1)[:, : codes.shape[1]]
        np.testing.assert_array_equal(again * (found.astype(np.int32) - 8), values)
    with pytest.raises(ValueError, match="float16"):
        codes_of(rng.normal(size=(8, group)).astype(np.float32), group)


def test_gguf_blocks_mean_the_weights_to_the_bit(tmp_path):
    gguf = pytest.importorskip("gguf")
    recipe = {"default": "q8_0", "gate_up": "q4_0", "down": "bf16", "head": "bf16"}
    recipe |= {"*.key_up": "bf16", "*.value_up": "bf16", "*shared.down": "bf16"}
    path = tmp_path / "q.gguf"
    full = mk.demo_model()
    texts = [full.tokenizer.encode(text) for text in TEXT]
    with pytest.warns(UserWarning, match="ids alone"):
        model = mk.quantize(full, recipe, texts, "gptq", window=256, out=path, layout="gguf")
    file = gguf.GGUFReader(path)
    tensors = {t.name: t for t in file.tensors}
    for layer in (1, 4):
        for role in ("gate", "up"):
            tensor = tensors[f"blk.{layer}.ffn_{role}_exps.weight"]
            assert tensor.tensor_type.name == "Q4_0"
            got = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            want = getattr(model.layers[layer].moe.experts, role).unpack()
            assert got.reshape(want.shape).tobytes() == want.tobytes()
    read = mk.load(path)
    ids = list(range(50, 80))
    np.testing.assert_allclose(read.forward(ids), model.forward(ids), rtol=0, atol=0.05)


def test_the_command_writes_a_file_where_its_name_says_so(tmp_path, capsys):
    out = tmp_path / "q.gguf"
    assert main(["quantize", "demo", "--format", "q8_0", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(out)
    assert out.is_file() and mk.checkpoint.open(out)
    odd = str(tmp_path / "directory.gguf")
    arguments = ["quantize", "demo", "--format", "int8", "--layout", "moekit", "--out", odd]
    assert main(arguments) == 0 and os.path.isdir(odd)
