"""Checkpoints as they are published where transformers writes others; a family that it lacks."""

import json
import re
from pathlib import Path
from typing import Any

import checkpoints
import family_checks
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from family_checks import TOLERANCE, prompt_of
from safetensors.numpy import load_file, save_file

import moekit as mk
from moekit.checkpoint import write_safetensors

# Applied in order to the names that transformers writes.
_V4_HUB = (
    (r"^model\.embed_tokens\.", "embed."),
    (r"^model\.hc_head\.hc_", "hc_head_"),
    (r"^model\.", ""),
    (r"\.attn\.norm\.", ".attn.kv_norm."),
)
_V4_HUB_CONFIG: dict[str, Any] = {
    "layer_types": None,
    "mlp_layer_types": None,
    "rope_parameters": None,
    "partial_rotary_factor": None,
    "compress_rates": None,
    "compress_ratios": [0, 4, 128],
    "num_hash_layers": 1,
    "qk_rope_head_dim": 6,
    "compress_rope_theta": 40000.0,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 64,
        "beta_fast": 32,
        "beta_slow": 1,
    },
}


def test_deepseek_v4_under_its_published_names(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", **_V4_HUB_CONFIG["rope_scaling"]}
    theirs = checkpoints.tiny_model(
        "deepseek_v4",
        3,
        rope_parameters={k: v for k, v in yarn.items() if k != "type"},
        compress_rope_theta=40000.0,
        compress_rates=None,
        num_hash_layers=1,
        mlp_layer_types=None,
    )
    path = checkpoints.save(theirs, tmp_path / "hub")
    file = path / "model.safetensors"
    renamed = {}
    for name, tensor in load_file(file).items():
        for pattern, replacement in _V4_HUB:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    assert "embed.weight" in renamed
    assert "layers.1.attn.kv_norm.weight" in renamed
    assert not any(name.startswith("model.") for name in renamed)
    renamed["mtp.0.attn_norm.weight"] = np.ones(72, np.float32)  # not run, not refused
    save_file(renamed, file)
    checkpoints.rewrite_config(path, **_V4_HUB_CONFIG)
    family_checks.logits_and_experts(theirs, path, 3)
    family_checks.greedy_tokens(theirs, path)


def _exponents(scales: np.ndarray) -> np.ndarray:
    """Powers of two, at least as large, as E8M0 bytes."""
    codes = np.ceil(np.log2(np.maximum(scales, 2.0**-126))) + 127
    return codes.astype(np.uint8).view(ml_dtypes.float8_e8m0fnu)


def _fp8(w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(e4m3, E8M0 scales of blocks of 128 x 128, what they mean)."""
    rows, cols = (-(-n // 128) for n in w.shape)
    tops = np.zeros((rows, cols), np.float32)
    for i in range(rows):
        for j in range(cols):
            tops[i, j] = np.abs(w[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128]).max()
    scales = _exponents(tops / 448)
    wide = scales.astype(np.float32).repeat(128, 0).repeat(128, 1)[: w.shape[0], : w.shape[1]]
    stored = (w / wide).astype(ml_dtypes.float8_e4m3fn)
    return stored, scales, stored.astype(np.float32) * wide


def _fp4(w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(two e2m1 a byte, the first one low, E8M0 scales of 32 inputs, what they mean)."""
    groups = w.reshape(len(w), -1, 32)
    scales = _exponents(np.abs(groups).max(-1) / 6)
    wide = scales.astype(np.float32)[..., None]
    codes = (groups / wide).astype(ml_dtypes.float4_e2m1fn)
    meant = (codes.astype(np.float32) * wide).reshape(w.shape)
    nibbles = codes.view(np.uint8).reshape(len(w), -1, 2) & 15
    return (nibbles[..., 0] | nibbles[..., 1] << 4).view(np.int8), scales, meant


def test_deepseek_v4_in_the_eight_and_four_bits_that_are_published(tmp_path: Path) -> None:
    theirs = checkpoints.tiny_model("deepseek_v4", 7, hidden_size=96, moe_intermediate_size=64)
    path = checkpoints.save(theirs, tmp_path / "packed")
    meant_path = checkpoints.save(theirs, tmp_path / "meant")
    tensors = load_file(path / "model.safetensors")
    packed, meant = dict(tensors), dict(tensors)
    for name, value in tensors.items():
        expert = re.search(r"experts\.\d+\.w[123]\.weight$", name)
        if not expert and not re.search(r"attn\.w\w+\.weight$", name):
            continue
        scale = name.removesuffix("weight") + "scale"
        packed[name], packed[scale], meant[name] = (_fp4 if expert else _fp8)(value)
    write_safetensors(path / "model.safetensors", packed)
    save_file(meant, meant_path / "model.safetensors")
    config = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0"}
    checkpoints.rewrite_config(
        path,
        quantization_config={**config, "weight_block_size": [128, 128]},
        expert_dtype="fp4",
    )
    ids = prompt_of(7, 21)
    expected = mk.load(meant_path).forward(ids)
    logits = mk.load(path, format="f32").forward(ids)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)
    kept = mk.load(path).layers[1].moe.experts.up
    assert kept.format == "mxfp4"
    for expert, found in enumerate(kept.unpack()):
        name = f"model.layers.1.ffn.experts.{expert}.w3.weight"
        np.testing.assert_array_equal(found, meant[name])


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("deepseek_v4", "sliding_window", 2**31 - 1),  # as much as there is, and no memory for it
        ("deepseek_v4", "index_topk", 2**31 - 1),
        ("deepseek_v32", "index_topk", 2**31 - 1),
        ("llama4_text", "attention_chunk_size", 2**31 - 1),
    ],
)
def test_a_limit_beyond_all_tokens_is_none(
    checkpoint_maker: Any, tmp_path: Path, family: str, field: str, value: int
) -> None:
    _, path = checkpoint_maker(family, 0)
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    ids = prompt_of(2, 19)
    checkpoints.rewrite_config(tmp_path, **{field: 64})
    expected = mk.load(tmp_path).forward(ids).tobytes()
    checkpoints.rewrite_config(tmp_path, **{field: value})
    assert mk.load(tmp_path).forward(ids).tobytes() == expected


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("deepseek_v2", "topk_method", "noaux_tc"),
        ("deepseek_v2", "topk_group", 9),
        ("deepseek_v32", "index_head_dim", 4),
        ("glm_moe_dsa", "indexer_types", ["shared", "full", "full"]),
        ("glm_moe_dsa", "indexer_types", "FXS"),
        ("longcat_flash", "moe_topk", 99),
        ("llama4_text", "layer_types", ["chunked_attention"]),
        ("deepseek_v4", "layer_types", ["full_attention"] * 3),
        ("deepseek_v4", "o_groups", 3),
        ("deepseek_v4", "hc_mult", 65),
        ("deepseek_v4", "mlp_layer_types", ["moe"]),
    ],
)
def test_faults_of_a_configuration_are_named(
    checkpoint_maker: Any, tmp_path: Path, family: str, field: str, value: Any
) -> None:
    changes = {"topk_method": "group_limited_greedy", "n_group": 5, "topk_group": 2}
    _, path = checkpoint_maker(family, 0, **changes if field == "topk_group" else {})
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    checkpoints.rewrite_config(tmp_path, **{field: value})
    with pytest.raises(mk.FileError, match=field):
        mk.load(tmp_path)


@pytest.mark.parametrize(
    ("family", "gone"),
    [
        ("deepseek_v2", ["routed_scaling_factor", "topk_method", "n_shared_experts"]),
        ("deepseek_v3", ["routed_scaling_factor", "norm_topk_prob", "n_group", "topk_group"]),
        ("deepseek_v32", ["routed_scaling_factor", "index_topk", "topk_group"]),
        ("deepseek_v4", ["routed_scaling_factor", "hc_eps", "scoring_func", "hc_sinkhorn_iters"]),
        ("glm_moe_dsa", ["routed_scaling_factor", "index_topk", "rms_norm_eps", "n_group"]),
        ("glm4_moe_lite", ["routed_scaling_factor", "mlp_layer_types", "rms_norm_eps"]),
        ("mistral4", ["rope_parameters", "n_group", "norm_topk_prob"]),
        ("axk1", ["routed_scaling_factor", "rms_norm_eps", "mlp_layer_types"]),
        ("longcat_flash", ["routed_scaling_factor", "rope_parameters", "rms_norm_eps"]),
        ("kimi_linear", ["routed_scaling_factor", "rms_norm_eps"]),
        ("bailing_hybrid", ["routed_scaling_factor", "rms_norm_eps"]),
        ("exaone_moe", ["routed_scaling_factor", "sliding_window", "rms_norm_eps"]),
        ("phimoe", ["rope_parameters", "router_jitter_noise", "rms_norm_eps"]),
        (
            "llama4_text",
            ["num_experts_per_tok", "attention_chunk_size", "floor_scale", "rope_parameters"],
        ),
    ],
)
def test_what_a_file_leaves_out_is_what_transformers_fills_in(
    tmp_path: Path, family: str, gone: list[str]
) -> None:
    changes: dict[str, Any] = {}
    if family in ("deepseek_v3", "deepseek_v32"):
        changes = {"n_routed_experts": 16, "n_group": 8, "topk_group": 4}
    if family == "deepseek_v3":
        changes["num_experts_per_tok"] = 8
    path = checkpoints.save(checkpoints.tiny_model(family, 8, **changes), tmp_path / "full")
    kind = checkpoints.CLASSES.get(family, "AutoModelForCausalLM")
    for field in gone:
        fields = json.loads((path / "config.json").read_text())
        assert fields.pop(field, None) is not None, field
        (path / "config.json").write_text(json.dumps(fields))
    theirs = getattr(transformers, kind).from_pretrained(
        path, attn_implementation="eager", dtype=torch.float32
    )
    theirs.set_experts_implementation("eager")
    family_checks.logits_and_experts(theirs.eval(), path, 8)


def test_llama4_inside_of_its_wrapper(tmp_path: Path) -> None:
    theirs = checkpoints.tiny_model("llama4_text", 2, num_experts_per_tok=1)
    path = checkpoints.save(theirs, tmp_path / "wrapped")
    file = path / "model.safetensors"
    tensors = {f"language_model.{name}": value for name, value in load_file(file).items()}
    tensors["vision_model.class_embedding"] = np.zeros(8, np.float32)
    tensors["multi_modal_projector.linear_1.weight"] = np.zeros((8, 8), np.float32)
    save_file(tensors, file)
    text = json.loads((path / "config.json").read_text())
    wrapped = {"model_type": "llama4", "text_config": text, "vision_config": {}}
    (path / "config.json").write_text(json.dumps(wrapped))
    family_checks.logits_and_experts(theirs, path, 2)
    model = mk.load(path)
    model.save(tmp_path / "text")
    ids = prompt_of(2, 9)
    assert mk.load(tmp_path / "text").forward(ids).tobytes() == model.forward(ids).tobytes()
    (path / "config.json").write_text(json.dumps({"model_type": "llama4"}))
    with pytest.raises(mk.FileError, match="text_config is missing"):
        mk.load(path)


def test_a_negative_bias_never_brings_back_a_lost_group(tmp_path: Path) -> None:
    theirs = checkpoints.tiny_model(
        "deepseek_v3", 4, n_routed_experts=12, n_group=4, topk_group=2, num_experts_per_tok=5
    )
    with torch.no_grad():
        for name, buffer in theirs.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.sub_(3.0)  # every biased score is below 0
    path = checkpoints.save(theirs, tmp_path / "negative")
    family_checks.logits_and_experts(theirs, path, 4)


def test_kimi_k2_is_a_deepseek_v3(tmp_path: Path) -> None:
    theirs = checkpoints.tiny_model("deepseek_v3", 6)
    path = checkpoints.save(theirs, tmp_path / "kimi")
    checkpoints.rewrite_config(path, model_type="kimi_k2", scoring_func="sigmoid")
    family_checks.logits_and_experts(theirs, path, 6)


# -- DeepSeekMoE ---------------------------------------------------------------------------

_SIZES = {"hidden": 24, "heads": 3, "layers": 3, "experts": 6, "inner": 10, "dense": 14}


def deepseek_moe(path: Path, seed: int, **changes: Any) -> dict[str, np.ndarray]:
    """A checkpoint of DeepSeekMoE-16B's architecture, as its own code names it."""
    rng = np.random.default_rng(seed)
    h, inner = _SIZES["hidden"], _SIZES["inner"]
    config = {
        "model_type": "deepseek",
        "vocab_size": 97,
        "hidden_size": h,
        "intermediate_size": _SIZES["dense"],
        "moe_intermediate_size": inner,
        "num_hidden_layers": _SIZES["layers"],
        "num_attention_heads": _SIZES["heads"],
        "num_key_value_heads": _SIZES["heads"],
        "n_routed_experts": _SIZES["experts"],
        "n_shared_experts": 2,
        "num_experts_per_tok": 3,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "norm_topk_prob": False,
        "scoring_func": "softmax",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        **changes,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (97, h),
        "model.norm.weight": (h,),
        "lm_head.weight": (97, h),
    }

    def mlp(prefix: str, width: int) -> None:
        shapes[f"{prefix}.gate_proj.weight"] = shapes[f"{prefix}.up_proj.weight"] = (width, h)
        shapes[f"{prefix}.down_proj.weight"] = (h, width)

    for n in range(_SIZES["layers"]):
        layer = f"model.layers.{n}"
        for part in "qkvo":
            shapes[f"{layer}.self_attn.{part}_proj.weight"] = (h, h)
        shapes[f"{layer}.input_layernorm.weight"] = (h,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (h,)
        if n < 1:
            mlp(f"{layer}.mlp", _SIZES["dense"])
            continue
        shapes[f"{layer}.mlp.gate.weight"] = (_SIZES["experts"], h)
        mlp(f"{layer}.mlp.shared_experts", 2 * inner)
        for expert in range(_SIZES["experts"]):
            mlp(f"{layer}.mlp.experts.{expert}", inner)
    tensors = {
        name: (rng.normal(0, 0.25, shape) + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors")
    return {name: value.astype(np.float64) for name, value in tensors.items()}


def _expected(w: dict[str, np.ndarray], ids: list[int], normalize: bool) -> np.ndarray:
    """Logits [T, V] in float64, loop by loop from the paper (arXiv 2401.06066, section 3)."""
    heads, dim = _SIZES["heads"], _SIZES["hidden"] // _SIZES["heads"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"]

    def mlp(x: np.ndarray, prefix: str) -> np.ndarray:
        gate = x @ w[f"{prefix}.gate_proj.weight"].T
        up = x @ w[f"{prefix}.up_proj.weight"].T
        return (gate / (1 + np.exp(-gate)) * up) @ w[f"{prefix}.down_proj.weight"].T

    def rotate(x: np.ndarray) -> np.ndarray:
        angles = np.arange(len(ids))[:, None] * 10000.0 ** (-np.arange(0, dim, 2) / dim)
        cos, sin = np.cos(angles), np.sin(angles)
        first, second = x[:, : dim // 2], x[:, dim // 2 :]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=1)

    x = w["model.embed_tokens.weight"][ids]
    for n in range(_SIZES["layers"]):
        layer = f"model.layers.{n}"
        y = norm(x, f"{layer}.input_layernorm")
        q, k, v = (y @ w[f"{layer}.self_attn.{part}_proj.weight"].T for part in "qkv")
        mixed = np.zeros_like(q)
        for head in range(heads):
            at = slice(head * dim, (head + 1) * dim)
            scores = rotate(q[:, at]) @ rotate(k[:, at]).T / np.sqrt(dim)
            scores[np.triu_indices(len(ids), 1)] = -np.inf
            weights = np.exp(scores - scores.max(1, keepdims=True))
            mixed[:, at] = weights / weights.sum(1, keepdims=True) @ v[:, at]
        x = x + mixed @ w[f"{layer}.self_attn.o_proj.weight"].T
        y = norm(x, f"{layer}.post_attention_layernorm")
        if n < 1:
            x = x + mlp(y, f"{layer}.mlp")
            continue
        out = mlp(y, f"{layer}.mlp.shared_experts")
        logits = y @ w[f"{layer}.mlp.gate.weight"].T
        scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        for t in range(len(ids)):
            best = np.argsort(-scores[t])[:3]
            total = scores[t, best].sum() if normalize else 1.0
            for expert in best:
                part = mlp(y[t : t + 1], f"{layer}.mlp.experts.{expert}")[0]
                out[t] += scores[t, expert] / total * part
        x = x + out
    return norm(x, "model.norm") @ w["lm_head.weight"].T


@pytest.mark.parametrize("normalize", [False, True])
def test_deepseek_moe_is_what_its_paper_says(tmp_path: Path, normalize: bool) -> None:
    path = tmp_path / "deepseek"
    weights = deepseek_moe(path, 5 + normalize, norm_topk_prob=normalize)
    ids = prompt_of(8, 21)
    model = mk.load(path)
    assert model.moe_layers == [1, 2]
    expected = _expected(weights, ids, normalize)
    np.testing.assert_allclose(model.forward(ids), expected, rtol=0, atol=TOLERANCE)
    family_checks.same_bytes(path)
    with model.record() as record, model.intervene(mask={(1, 2)}, force={(2, 1)}):
        model.forward(ids)
    assert not (record.experts[:, 0] == 2).any()
    assert (record.experts[:, 1] == 1).any(axis=1).all()


def test_the_family_is_not_in_transformers() -> None:
    # As soon as it is, the loops above should give way to it.
    with pytest.raises(ValueError, match="deepseek"):
        transformers.AutoConfig.for_model("deepseek")
