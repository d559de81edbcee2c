"""Quantised Hugging Face checkpoints as whole models: what is kept packed, and the same answers."""

import shutil
from pathlib import Path
from typing import Any

import checkpoints
import grouped_families
import hf_quantisers
import latent_families
import ml_dtypes
import numpy as np
import pytest
import recurrent_families
import transformers
from safetensors.numpy import load_file, save_file

import moekit as mk
from moekit.models.expert_layouts import Layout
from moekit.models.formats import Formats
from moekit.models.reader import Reader

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 90, 17]
SIZES: dict[str, dict[str, Any]] = {
    "mixtral": {"hidden_size": 96, "intermediate_size": 160, "head_dim": 32},
    "qwen3_moe": {
        "hidden_size": 160,
        "head_dim": 32,
        "moe_intermediate_size": 64,
        "mlp_only_layers": [1],
        "intermediate_size": 96,
    },
    "deepseek_v3": {
        "hidden_size": 136,
        "moe_intermediate_size": 144,
        "intermediate_size": 152,
        "qk_nope_head_dim": 48,
        "v_head_dim": 40,
        "kv_lora_rank": 32,
        "q_lora_rank": 64,
        "qk_rope_head_dim": 16,
    },
}


def stored_matrix(meant: dict[str, np.ndarray], piece: Any) -> np.ndarray:
    matrix = meant[piece.name]
    return piece.of(matrix if piece.expert is None else matrix[piece.expert])


def compare(
    model: Any, meant: dict[str, np.ndarray], exact: set[str], tolerance: dict[str, float]
) -> set[str]:
    """Every matrix of the model against the values that its file means; returns the formats."""
    formats = set()
    for placed in model.placed:
        wanted = (
            np.asarray(stored_matrix(meant, placed.piece), np.float32)
            if (meant[placed.piece.name].ndim > 1)
            else meant[placed.piece.name]
        )
        if placed.slot < 0:
            np.testing.assert_array_equal(np.asarray(placed.weight, np.float32), wanted)
            continue
        found = placed.weight.unpack_expert(placed.slot)
        format = placed.weight.expert_format(placed.slot)
        formats.add(format)
        if format in exact:
            np.testing.assert_array_equal(found, wanted, err_msg=placed.piece.name)
        else:
            error = np.square(found - wanted).mean() / np.square(wanted).mean()
            assert error <= tolerance[format], placed.piece.name
    return formats


def same_answers(model: Any, meant: dict[str, np.ndarray], plain: Path, tmp_path: Path) -> None:
    """Logits against transformers, which reads the values as a plain checkpoint.

    In float32 they agree as two programs do; packed, activations have 8 bits in every product.
    """
    other = tmp_path / "meant"
    shutil.copytree(plain, other)
    save_file(
        {name: np.ascontiguousarray(value, np.float32) for name, value in meant.items()},
        other / "model.safetensors",
        {"format": "pt"},
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        other, attn_implementation="eager", dtype="float32"
    )
    theirs.set_experts_implementation("eager")
    wanted = checkpoints.their_logits(theirs, IDS)
    exact = mk.load(tmp_path / "q", format="f32").forward(IDS)
    np.testing.assert_allclose(exact, wanted, rtol=0, atol=5e-4)
    found = model.forward(IDS)
    # Loose, since a random router's choice tips easily: the matrices are compared one by one.
    assert np.vdot(found, wanted) > 0.8 * np.linalg.norm(found) * np.linalg.norm(wanted)


SCHEMES: dict[str, tuple[Any, dict[str, object], set[str]]] = {
    "gptq": (
        hf_quantisers.gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False},
        {"q4_0"},
    ),
    "gptq-row": (
        lambda w: hf_quantisers.gptq(w, group=-1),
        {"quant_method": "gptq", "bits": 4, "group_size": -1},
        {"q4_0"},
    ),
    "gptq-8": (
        lambda w: hf_quantisers.gptq(w, bits=8),
        {"quant_method": "gptq", "bits": 8, "group_size": 32},
        {"q8_0"},
    ),
    "gptq-2": (
        lambda w: hf_quantisers.gptq(w, bits=2),
        {"quant_method": "gptq", "bits": 2, "group_size": 32},
        {"q4_0"},
    ),
}


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_symmetric_gptq_is_kept_to_the_bit(
    checkpoint_maker: Any, tmp_path: Path, family: str, scheme: str
) -> None:
    _, plain = checkpoint_maker(family, 3, **SIZES[family])
    quantiser, config, formats = SCHEMES[scheme]
    meant = hf_quantisers.quantise_checkpoint(plain, tmp_path / "q", quantiser, config)
    model = mk.load(tmp_path / "q")
    assert compare(model, meant, {"f32", *formats}, {}) == {"f32", *formats}
    same_answers(model, meant, plain, tmp_path)


@pytest.mark.parametrize("family", list(SIZES))
def test_act_order_and_odd_sizes_keep_eight_bits(
    checkpoint_maker: Any, tmp_path: Path, family: str
) -> None:
    _, plain = checkpoint_maker(family, 3, **SIZES[family])
    meant = hf_quantisers.quantise_checkpoint(
        plain,
        tmp_path / "q",
        lambda w: hf_quantisers.gptq(w, group=8, act_order=True),
        {"quant_method": "gptq", "bits": 4, "group_size": 8, "desc_act": True},
    )
    model = mk.load(tmp_path / "q")
    assert compare(model, meant, {"f32"}, {"q8_0": 5e-5}) == {"f32", "q8_0"}
    same_answers(model, meant, plain, tmp_path)


@pytest.mark.parametrize("kind", ["awq", "gptq"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_zeros_of_their_own(checkpoint_maker: Any, tmp_path: Path, family: str, kind: str) -> None:
    _, plain = checkpoint_maker(family, 3, **SIZES[family])
    quantiser = (
        hf_quantisers.awq if kind == "awq" else lambda w: hf_quantisers.gptq(w, symmetric=False)
    )
    config = {"quant_method": kind, "bits": 4, "group_size": 32, "sym": False}
    meant = hf_quantisers.quantise_checkpoint(plain, tmp_path / "q", quantiser, config)
    model = mk.load(tmp_path / "q")
    found = compare(model, meant, {"f32"}, {"q8_0": 5e-5, "q4_1": 3e-7})
    assert found == {"f32", "q4_1" if "q4_1" in mk.ops.format_names() else "q8_0"}
    same_answers(model, meant, plain, tmp_path)


@pytest.mark.parametrize("family", list(SIZES))
def test_fp8_with_cut_blocks(checkpoint_maker: Any, tmp_path: Path, family: str) -> None:
    _, plain = checkpoint_maker(family, 3, **SIZES[family])
    config: dict[str, object] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    meant = hf_quantisers.quantise_checkpoint(plain, tmp_path / "q", hf_quantisers.fp8, config)
    model = mk.load(tmp_path / "q")
    assert compare(model, meant, {"f32", "fp8"}, {}) == {"f32", "fp8"}
    same_answers(model, meant, plain, tmp_path)
    # Saved in moekit's own layout or as a plain checkpoint nothing changes either.
    kept = mk.load(tmp_path / "q", max_memory=1 << 40).forward(IDS)
    assert kept.tobytes() == model.forward(IDS).tobytes()


HEADS = {"aligned": (128, 128), "every second": (192, 256), "odd": (40, 24)}


@pytest.mark.parametrize("heads", list(HEADS))
def test_fp8_keys_are_cut_across_scales(checkpoint_maker: Any, tmp_path: Path, heads: str) -> None:
    nope, value = HEADS[heads]
    sizes = {"qk_nope_head_dim": nope, "v_head_dim": value, "num_attention_heads": 3}
    sizes |= {"num_key_value_heads": 3, "kv_lora_rank": 200, "hidden_size": 264}
    _, plain = checkpoint_maker("deepseek_v3", 6, **sizes)
    config: dict[str, object] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    meant = hf_quantisers.quantise_checkpoint(plain, tmp_path / "q", hf_quantisers.fp8, config)
    model = mk.load(tmp_path / "q")
    assert compare(model, meant, {"f32", "fp8"}, {}) == {"f32", "fp8"}
    same_answers(model, meant, plain, tmp_path)
    attention = model.layers[0].attention
    assert attention.value_up.format == "fp8"
    starts = [n * (nope + value) for n in range(3)]
    cut = [s // 128 != (s + nope - 1) // 128 and (s % 128 != 0) for s in starts]
    assert [attention.key_up.expert_format(n) for n in range(3)] == [
        "f32" if across else "fp8" for across in cut
    ]


def test_another_format_is_made_of_the_values(checkpoint_maker: Any, tmp_path: Path) -> None:
    _, plain = checkpoint_maker("mixtral", 3, **SIZES["mixtral"])
    config: dict[str, object] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    meant = hf_quantisers.quantise_checkpoint(plain, tmp_path / "q", hf_quantisers.gptq, config)
    model = mk.load(tmp_path / "q", format="f32")
    assert compare(model, meant, {"f32"}, {}) == {"f32"}


def mxfp4_bank(rng: np.random.Generator, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    experts, rows, cols = shape
    return {
        "_blocks": rng.integers(0, 256, (experts, rows, cols // 32, 16), dtype=np.uint8),
        "_scales": rng.integers(100, 140, (experts, rows, cols // 32), dtype=np.uint8),
    }


def mxfp4_value(bank: dict[str, np.ndarray], e: int, n: int, k: int) -> float:
    byte = int(bank["_blocks"][e, n, k // 32, k % 32 // 2])
    code = byte >> 4 if k % 2 else byte & 15
    magnitude = (0, 0.5, 1, 1.5, 2, 3, 4, 6)[code & 7]
    sign = -1.0 if code & 8 else 1.0
    return sign * magnitude * 2.0 ** (int(bank["_scales"][e, n, k // 32]) - 127)


def test_mxfp4_banks_go_in_as_they_are(tmp_path: Path) -> None:
    experts, inner, hidden = 3, 32, 64
    rng = np.random.default_rng(0)
    both = mxfp4_bank(rng, (experts, 2 * inner, hidden))
    down = mxfp4_bank(rng, (experts, hidden, inner))
    tensors = {"e.gate_up_proj" + key: value for key, value in both.items()}
    tensors |= {"e.down_proj" + key: value for key, value in down.items()}
    tensors["e.gate_up_proj_bias"] = rng.standard_normal((experts, 2 * inner)).astype(np.float32)
    tensors["e.down_proj_bias"] = rng.standard_normal((experts, hidden)).astype(np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    layout = Layout(transposed=True, interleaved=True, bias=True)
    with mk.checkpoint.open_model(tmp_path) as file:
        weights = mk.checkpoint.open_weights(
            file, {"quantization_config": {"quant_method": "mxfp4"}}
        )
        reader = Reader(weights, Formats())
        found = reader.experts("e", experts, inner, hidden, layout=layout)
        reader.require_all_used(lambda name: False)
    assert {found.gate.format, found.up.format, found.down.format} == {"mxfp4"}
    gate, up, low = found.gate.unpack(), found.up.unpack(), found.down.unpack()
    for e in range(experts):
        for n in range(inner):
            for k in range(hidden):
                assert gate[e, n, k] == mxfp4_value(both, e, 2 * n, k)
                assert up[e, n, k] == mxfp4_value(both, e, 2 * n + 1, k)
                assert low[e, k, n] == mxfp4_value(down, e, k, n)
    np.testing.assert_array_equal(found.gate_bias, tensors["e.gate_up_proj_bias"][:, 0::2])
    np.testing.assert_array_equal(found.up_bias, tensors["e.gate_up_proj_bias"][:, 1::2])


def test_packed_fp4_with_exponents_is_mxfp4(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    packed = rng.integers(0, 256, (48, 32), dtype=np.uint8).view(np.int8)
    scales = rng.integers(100, 140, (48, 2), dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu)
    tensors = {"a.weight": packed, "a.weight_scale_inv": scales}
    mk.checkpoint.write_safetensors(tmp_path / "model.safetensors", tensors)
    with mk.checkpoint.open_model(tmp_path) as file:
        weights = mk.checkpoint.open_weights(file, {"quantization_config": {"quant_method": "fp8"}})
        found = Reader(weights, Formats()).packed("a.weight", 48, 64, None)
        assert found.format == "mxfp4"
        np.testing.assert_array_equal(found.unpack(), weights["a.weight"])


def test_gpt_oss_as_it_is_published(checkpoint_maker: Any, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 32, "head_dim": 16, "num_local_experts": 4}
    sizes |= {"swiglu_limit": 7.0}
    _, plain = checkpoint_maker("gpt_oss", 3, **sizes)
    target = tmp_path / "q"
    shutil.copytree(plain, target)
    tensors = load_file(plain / "model.safetensors")
    meant = dict(tensors)
    rng = np.random.default_rng(5)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        bank = mxfp4_bank(rng, (experts, outputs, inputs))
        bank["_scales"] = rng.integers(122, 126, bank["_scales"].shape, dtype=np.uint8)
        tensors |= {name + key: value for key, value in bank.items()}
        meant[name] = np.array(
            [
                [[mxfp4_value(bank, e, n, k) for n in range(outputs)] for k in range(inputs)]
                for e in range(experts)
            ],
            np.float32,
        )
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    checkpoints.rewrite_config(target, quantization_config={"quant_method": "mxfp4"})
    model = mk.load(target)
    assert compare(model, meant, {"f32", "mxfp4"}, {}) == {"f32", "mxfp4"}
    same_answers(model, meant, plain, tmp_path)
    # The blocks go into a GGUF file, and from there into memory, without a change.
    model.save(tmp_path / "x.gguf")
    again = mk.load(tmp_path / "x.gguf")
    assert again.layers[1].moe.experts.up.format == "mxfp4"
    assert again.forward(IDS).tobytes() == model.forward(IDS).tobytes()


def small_groups(w: np.ndarray) -> hf_quantisers.Quantised:
    """GPTQ in groups of eight, which suits odd sizes; matrices that pack into no words stay."""
    if w.ndim != 2 or w.shape[0] % 8 or w.shape[1] % 8:
        return {"weight": w}, w
    return hf_quantisers.gptq(w, group=8)


def small_awq(w: np.ndarray) -> hf_quantisers.Quantised:
    """The same for AWQ."""
    if w.ndim != 2 or w.shape[0] % 8 or w.shape[1] % 8:
        return {"weight": w}, w
    return hf_quantisers.awq(w, group=8)


QUANTISERS: dict[str, tuple[Any, dict[str, object]]] = {
    "fp8": (
        lambda w: hf_quantisers.fp8(w) if w.ndim == 2 else ({"weight": w}, w),
        {"quant_method": "fp8"},
    ),
    "gptq": (small_groups, {"quant_method": "gptq", "bits": 4, "group_size": 8}),
    "awq": (small_awq, {"quant_method": "awq", "bits": 4, "group_size": 8}),
}
_FIELDS = (grouped_families, latent_families, recurrent_families)
EVERY = sorted({*checkpoints.FAMILIES, *(family for m in _FIELDS for family in m.FIELDS)})

# Published with every large matrix stacked in three dimensions, which GPTQ and AWQ do not pack.
STACKED = {"jetmoe"}


@pytest.mark.parametrize(
    ("family", "scheme"),
    [(f, s) for f in EVERY for s in QUANTISERS if s == "fp8" or f not in STACKED],
)
def test_every_family_finds_its_quantised_layers(
    checkpoint_maker: Any, tmp_path: Path, family: str, scheme: str
) -> None:
    _, plain = checkpoint_maker(family, 0, **({"head_dim": 16} if family == "gpt_oss" else {}))
    quantiser, config = QUANTISERS[scheme]
    meant = hf_quantisers.quantise_checkpoint(plain, tmp_path / "q", quantiser, config)
    with mk.checkpoint.open_model(tmp_path / "q") as file:
        stored = [name for name in file if name.endswith(("weight_scale_inv", ".qweight"))]
    assert len(stored) >= 3
    model = mk.load(tmp_path / "q")
    found = compare(model, meant, {"f32", "fp8"}, {"q8_0": 6e-5, "q4_1": 1e-7})
    assert found - {"f32"}, "nothing was kept packed"
    assert np.isfinite(model.forward(IDS)).all()


@pytest.mark.parametrize("paged", [False, True])
def test_gate_and_up_of_two_kinds_meet(checkpoint_maker: Any, tmp_path: Path, paged: bool) -> None:
    """One gate with zeros of its own, which four bits without minima cannot keep: the ups, which
    they could, take eight bits with it."""
    _, plain = checkpoint_maker("mixtral", 3, **SIZES["mixtral"])
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    kinds = iter([False])

    def quantise(w: np.ndarray) -> hf_quantisers.Quantised:
        odd = w.shape == (160, 96) and next(kinds, None) is False
        return hf_quantisers.gptq(w, symmetric=not odd)

    meant = hf_quantisers.quantise_checkpoint(plain, tmp_path / "x", quantise, config)
    limit = 1 << 20 if paged else None
    model = mk.load(tmp_path / "x", max_memory=limit)
    formats = {
        (layer.moe.experts.gate.format, layer.moe.experts.up.format) for layer in model.layers
    }
    assert formats == {("q8_0", "q8_0"), ("q4_0", "q4_0")} or paged
    exact = mk.load(tmp_path / "x", format="f32").forward(IDS)
    found = model.forward(IDS)
    assert np.vdot(found, exact) > 0.99 * np.linalg.norm(found) * np.linalg.norm(exact)
    assert len(meant) > 0
