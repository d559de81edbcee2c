"""GGUF files of hybrids: the same answers as the Hugging Face checkpoint they came from.

The writer here follows llama.cpp's converter: its files of these names in conversion/.
"""

import json
import re
from pathlib import Path
from typing import Any

import checkpoints
import gguf
import gguf_converter
import llama_cpp_oracle
import numpy as np
import pytest
from safetensors.numpy import load_file
from saved_families import HYBRIDS
from test_models_gguf import vocabulary
from test_models_save import letters

import moekit as mk
from moekit.saving.gguf_states import STATES

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 90, 17]
ARCHES = {
    "jamba": "jamba",
    "lfm2_moe": "lfm2moe",
    "nemotron_h": "nemotron_h_moe",
    "granitemoehybrid": "granitehybrid",
    "qwen3_next": "qwen3next",
    "qwen3_5_moe_text": "qwen35moe",
    "kimi_linear": "kimi-linear",
}
_EXPERT = re.compile(r"(.*)\.experts\.(\d+)\.(\w+)\.weight")
_PARTS = {"w1": "gate", "w3": "up", "w2": "down"}


def tensors_of(source: Path, family: str, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Under GGUF's names, with what the converter changes."""
    plain = {k: v.astype(np.float32) for k, v in load_file(source / "model.safetensors").items()}
    layers = config.get("num_hidden_layers") or len(config["layers_block_type"])
    number = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == ARCHES[family])
    names = gguf.get_tensor_name_map(number, layers)
    experts = config.get("num_local_experts", 1)
    out: dict[str, np.ndarray] = {}
    banks: dict[str, dict[int, np.ndarray]] = {}
    for name, value in plain.items():
        block = name.split(".")[2] if ".layers." in name else ""
        match = _EXPERT.fullmatch(name)
        if match:
            role = _PARTS.get(match[3], match[3].removesuffix("_proj"))
            bank = banks.setdefault(f"blk.{block}.ffn_{role}_exps.weight", {})
            bank[int(match[2])] = value
            continue
        if name.endswith("A_log"):
            value = -np.exp(value)
        elif name.endswith("dt_bias"):
            name = name.replace("dt_bias", "dt.bias" if family == "nemotron_h" else "dt_proj.bias")
        elif name.endswith(("e_score_correction_bias", "expert_bias")):
            out[f"blk.{block}.exp_probs_b.bias"] = value
            continue
        elif "conv" in name and name.endswith("weight") and value.ndim == 3:
            value = value[:, 0]
        if family in ("nemotron_h", "granitemoehybrid"):
            if name.endswith((".A_log", ".D")):
                value = value.reshape(-1, 1)
            elif name.endswith(("mixer.norm.weight", "mamba.norm.weight")):
                groups = config.get("n_groups") or config["mamba_n_groups"]
                value = value.reshape(groups, -1)
        if family == "granitemoehybrid":
            if name.endswith("input_linear.weight"):
                end = "exps" if "block_sparse" in name else "shexp" if experts else ""
                gate, up = np.split(value, 2, axis=-2)
                for role, part in (("gate", gate), ("up", up)):
                    out[f"blk.{block}.ffn_{role}{end and '_' + end}.weight"] = part
                continue
            if name.endswith("shared_mlp.output_linear.weight") and not experts:
                out[f"blk.{block}.ffn_down.weight"] = value
                continue
            for part, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
                if name.endswith(f"{part}_proj.weight"):
                    value = gguf_converter.pairs_from_halves(value, config[heads])
        if family == "kimi_linear":
            if "_conv1d." in name:
                value = value.reshape(1, value.shape[0], 1, -1)
            elif name.endswith("kv_b_proj.weight"):
                heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
                both = value.reshape(heads, -1, value.shape[1])
                out[f"blk.{block}.attn_k_b.weight"] = both[:, :nope].swapaxes(1, 2)
                out[f"blk.{block}.attn_v_b.weight"] = both[:, nope:]
                continue
            elif re.search(r"block_sparse_moe\.\w+_proj", name):
                name = name.replace("block_sparse_moe", "mlp")  # a dense layer
        if family == "qwen3_5_moe_text" and ".linear_attn." in name:
            value = tiled(name, value, config)
        if family.startswith("qwen3"):
            if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
                value = value + np.float32(1)
            elif name.endswith("in_proj_qkvz.weight"):
                groups, width = config["linear_num_key_heads"], config["linear_key_head_dim"]
                wide = value.reshape(groups, -1, value.shape[1])
                rest = (wide.shape[1] - 2 * width) // 2
                parts = np.split(wide, [width, 2 * width, 2 * width + rest], axis=1)
                *joint, z = (part.reshape(-1, value.shape[1]) for part in parts)
                out[f"blk.{block}.attn_qkv.weight"] = np.concatenate(joint)
                out[f"blk.{block}.attn_gate.weight"] = z
                continue
            elif name.endswith("shared_expert_gate.weight"):
                value = value[0]
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new is not None, name
        out[new] = value
    return out | {
        name: np.stack([bank[expert] for expert in range(len(bank))])
        for name, bank in banks.items()
    }


def tiled(name: str, value: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """Value heads of one key head stand apart, as ggml repeats keys."""
    keys, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    skipped = 0
    if name.endswith(("in_proj_qkv.weight", "conv1d.weight")):
        skipped = 2 * keys * config["linear_key_head_dim"]
    if name.endswith("linear_attn.norm.weight"):
        return value
    axis = 1 if name.endswith("out_proj.weight") else 0
    front, values = np.split(value, [skipped], axis=axis)
    width = values.shape[axis] // heads
    order = [
        (key * (heads // keys) + own) * width + column
        for own in range(heads // keys)
        for key in range(keys)
        for column in range(width)
    ]
    return np.concatenate([front, np.take(values, order, axis=axis)], axis=axis)


def convert(source: Path, target: Path, family: str, **changes: Any) -> None:
    """Write the checkpoint at `source` as GGUF; `changes` replace keys without the architecture."""
    config = json.loads((source / "config.json").read_text())
    get, arch = config.get, ARCHES[family]
    writer = gguf.GGUFWriter(target, arch)
    # Latent attention is one head of keys to llama.cpp.
    kv = 1 if family == "kimi_linear" else config["num_key_value_heads"]
    if family == "jamba":
        layers = config["num_hidden_layers"]
        attends = [n % get("attn_layer_period") == get("attn_layer_offset") for n in range(layers)]
        inner: Any = config["intermediate_size"]
    else:
        kinds = get("layer_types") or get("layers_block_type")
        attends = [kind == "full_attention" for kind in kinds]
        inner = config["intermediate_size"]
        if family == "nemotron_h":
            inner = [config["moe_intermediate_size"] if kind == "moe" else 0 for kind in kinds]
    keys: dict[str, Any] = {
        "block_count": len(attends),
        "context_length": 256,
        "embedding_length": config["hidden_size"],
        "feed_forward_length": inner,
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": [kv if attention else 0 for attention in attends],
        "attention.layer_norm_rms_epsilon": float(
            get("rms_norm_eps") or get("norm_eps") or get("layer_norm_epsilon")
        ),
        "expert_count": get("num_experts") or get("n_routed_experts") or get("num_local_experts"),
        "expert_used_count": get("num_experts_per_tok") or get("num_experts_per_token"),
        "vocab_size": config["vocab_size"],
    }
    if family == "jamba":
        keys |= {
            "ssm.conv_kernel": config["mamba_d_conv"],
            "ssm.inner_size": config["mamba_expand"] * config["hidden_size"],
            "ssm.state_size": config["mamba_d_state"],
            "ssm.time_step_rank": config["mamba_dt_rank"],
        }
    elif family == "lfm2_moe":
        keys |= {
            "expert_feed_forward_length": config["moe_intermediate_size"],
            "leading_dense_block_count": config["num_dense_layers"],
            "expert_gating_func": 2,
            "shortconv.l_cache": config["conv_L_cache"],
            "rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
        }
    elif family == "kimi_linear":
        rotary, latent = config["qk_rope_head_dim"], config["kv_lora_rank"]
        keys |= {
            "ssm.conv_kernel": config["linear_conv_kernel_dim"],
            "kda.head_dim": config["linear_head_dim"],
            "attention.kv_lora_rank": latent,
            "rope.dimension_count": rotary,
            "attention.key_length": latent + rotary,
            "attention.value_length": latent,
            "attention.key_length_mla": config["qk_nope_head_dim"] + rotary,
            "attention.value_length_mla": config["v_head_dim"],
            "expert_feed_forward_length": config["moe_intermediate_size"],
            "expert_shared_count": config["num_shared_experts"],
            "leading_dense_block_count": config["mlp_layer_types"].count("dense"),
            "expert_weights_scale": config["routed_scaling_factor"],
            "expert_gating_func": 2,
        }
    elif family == "granitemoehybrid":
        keys |= {
            "ssm.conv_kernel": config["mamba_d_conv"],
            "ssm.inner_size": config["mamba_expand"] * config["hidden_size"],
            "ssm.state_size": config["mamba_d_state"],
            "ssm.time_step_rank": config["mamba_n_heads"],
            "ssm.group_count": config["mamba_n_groups"],
            "attention.scale": float(config["attention_multiplier"]),
            "embedding_scale": float(config["embedding_multiplier"]),
            "residual_scale": float(config["residual_multiplier"]),
            "logit_scale": float(config["logits_scaling"]),
            "expert_shared_feed_forward_length": config["shared_intermediate_size"],
            "rope.scaling.finetuned": get("position_embedding_type") == "rope",
            "rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
            "rope.dimension_count": config["hidden_size"] // config["num_attention_heads"],
        }
    elif family.startswith("qwen3"):
        values = config["linear_num_value_heads"]
        rotated = int(config["head_dim"] * config["rope_parameters"]["partial_rotary_factor"])
        keys |= {
            "attention.head_count_kv": kv,
            "attention.key_length": config["head_dim"],
            "attention.value_length": config["head_dim"],
            "expert_feed_forward_length": config["moe_intermediate_size"],
            "expert_shared_feed_forward_length": config["shared_expert_intermediate_size"],
            "ssm.conv_kernel": config["linear_conv_kernel_dim"],
            "ssm.state_size": config["linear_key_head_dim"],
            "ssm.group_count": config["linear_num_key_heads"],
            "ssm.time_step_rank": values,
            "ssm.inner_size": values * config["linear_value_head_dim"],
            "full_attention_interval": 4,
            "rope.dimension_count": rotated,
            "rope.dimension_sections": [rotated // 6, rotated // 6, rotated // 6, 0],
            "rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
        }
    else:
        keys |= {
            "ssm.conv_kernel": config["conv_kernel"],
            "ssm.inner_size": config["mamba_num_heads"] * config["mamba_head_dim"],
            "ssm.state_size": config["ssm_state_size"],
            "ssm.time_step_rank": config["mamba_num_heads"],
            "ssm.group_count": config["n_groups"],
            "attention.key_length": config["head_dim"],
            "attention.value_length": config["head_dim"],
            "expert_feed_forward_length": config["moe_intermediate_size"],
            "expert_shared_feed_forward_length": config["moe_shared_expert_intermediate_size"],
            "expert_shared_count": config["n_shared_experts"],
            "expert_weights_norm": config["norm_topk_prob"],
            "expert_weights_scale": float(config["routed_scaling_factor"]),
            "expert_group_count": config["n_group"],
            "rope.dimension_count": config["head_dim"],
        }
        if get("moe_latent_size"):
            keys["moe_latent_size"] = config["moe_latent_size"]
    if family == "nemotron_h":  # llama.cpp asks for both
        keys["attention.layer_norm_epsilon"] = keys["attention.layer_norm_rms_epsilon"]
    if not keys["expert_count"]:
        del keys["expert_count"], keys["expert_used_count"]
    for key, value in {**keys, **changes}.items():
        write_key(writer, f"{arch}.{key}", value)
    vocabulary(writer)
    for name, value in tensors_of(source, family, config).items():
        if name != "output.weight" or not get("tie_word_embeddings"):
            writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_key(writer: Any, key: str, value: Any) -> None:
    """With the type that the converter gives."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, value)


def compare(found: Any, wanted: Any, family: str) -> None:
    """The same bytes, but where columns of a matrix have changed places."""
    ours, theirs = found.forward(IDS), wanted.forward(IDS)
    if ARCHES[family] == "qwen35moe":
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    else:
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("family", ARCHES)
def test_a_float32_file_is_its_source(checkpoint_maker: Any, tmp_path: Path, family: str) -> None:
    _, source = checkpoint_maker(family, 2, **HYBRIDS[family])
    convert(source, tmp_path / "x.gguf", family)
    wanted, found = mk.load(source), mk.load(tmp_path / "x.gguf")
    compare(found, wanted, family)
    assert found.config["model_type"] == wanted.config["model_type"] == family
    assert found.moe_layers == wanted.moe_layers
    if family == "lfm2_moe":  # it has no states
        found.save(tmp_path / "out")
        return
    with pytest.raises(ValueError, match=r"\[save\] .* cannot be written back"):
        found.save(tmp_path / "out")
    if family in STATES:
        return
    with pytest.raises(ValueError, match=r"\[save\] .* has no architecture in GGUF"):
        wanted.save(tmp_path / "out.gguf")


@pytest.mark.parametrize("format", ["f32", "bf16", "q8_0"])
@pytest.mark.parametrize("family", STATES)
def test_a_written_file_is_the_same_model(
    checkpoint_maker: Any, tmp_path: Path, family: str, format: str
) -> None:
    # Widths that q8_0 has blocks for, so that rows change places inside of packed tensors too.
    wide = {"hidden_size": 96} if format == "q8_0" else {}
    if format == "q8_0" and family.startswith("qwen"):
        wide |= {"linear_key_head_dim": 32, "linear_value_head_dim": 32}
    _, source = checkpoint_maker(family, 6, **{**HYBRIDS[family], **wide})
    model = mk.load(source, format=format)
    model.save(tmp_path / "x.gguf")
    wanted = model.forward(IDS)
    found = mk.load(tmp_path / "x.gguf")
    if format == "q8_0":  # where no block fits, files have float16, which tips random routers
        ours = found.forward(IDS)
        assert np.vdot(ours, wanted) > 0.9 * np.linalg.norm(ours) * np.linalg.norm(wanted)
        with mk.checkpoint.open(tmp_path / "x.gguf") as file:
            assert "Q8_0" in {file.info(name).dtype for name in file}
            if family.startswith("qwen"):
                assert file.info("blk.0.ssm_out.weight").dtype == "Q8_0"
                assert file.info("blk.0.attn_gate.weight").dtype == "Q8_0"
    elif family == "qwen3_5_moe_text":
        # Columns have changed places; in bfloat16 sums differ by a rounding.
        bound = 1e-4 if format == "f32" else 0.1
        np.testing.assert_allclose(found.forward(IDS), wanted, rtol=0, atol=bound)
    else:
        assert found.forward(IDS).tobytes() == wanted.tobytes()
    found.save(tmp_path / "y.gguf")
    again = mk.load(tmp_path / "y.gguf").forward(IDS)
    assert again.tobytes() == found.forward(IDS).tobytes()
    if llama_cpp_oracle.find() is None or format == "q8_0":
        return
    model.tokenizer = letters()
    model.save(tmp_path / "z.gguf")
    answer = llama_cpp_oracle.ask(tmp_path / "z.gguf", ids=IDS, count=6)
    if format == "f32":
        # Unit keys of nearly empty states amplify rounding, and differences of their epsilons.
        bound = 1e-2 if family == "kimi_linear" else 2e-3
        np.testing.assert_allclose(wanted, answer["logits"], rtol=0, atol=bound)
        assert model.generate(IDS, max_new_tokens=6) == answer["greedy"]


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("bailing_hybrid", {"kda_safe_gate": False}, "kda_safe_gate"),
        ("bailing_hybrid", {"linear_num_heads": 4}, "linear_num_heads"),
        (
            "bailing_hybrid",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 4.0,
                    "mscale": 1.0,
                    "mscale_all_dim": 1.0,
                    "original_max_position_embeddings": 64,
                }
            },
            "rope_type",
        ),
        (
            "qwen3_next",
            {"layer_types": ["full_attention", *["linear_attention"] * 3]},
            "layer_types",
        ),
        ("qwen3_next", {"norm_topk_prob": False}, "norm_topk_prob"),
    ],
)
def test_what_hybrids_cannot_say_is_refused(
    checkpoint_maker: Any, tmp_path: Path, family: str, changes: dict[str, Any], named: str
) -> None:
    model = mk.load(checkpoint_maker(family, 1, **{**HYBRIDS[family], **changes})[1])
    with pytest.raises(ValueError, match=named):
        model.save(tmp_path / "x.gguf")
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize("least", [0.0, 0.3, None])
def test_a_limit_of_time_steps_is_kept(
    checkpoint_maker: Any, tmp_path: Path, least: float | None
) -> None:
    _, source = checkpoint_maker("nemotron_h", 1, **HYBRIDS["nemotron_h"])
    checkpoints.rewrite_config(source, time_step_min=least)  # without one it is 0.001
    model = mk.load(source)
    model.save(tmp_path / "x.gguf")
    found = mk.load(tmp_path / "x.gguf")
    assert found.config["time_step_min"] == pytest.approx(0.001 if least is None else least)
    assert found.forward(IDS).tobytes() == model.forward(IDS).tobytes()


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        (
            "nemotron_h",
            {**HYBRIDS["nemotron_h"], "moe_latent_size": 30, "routed_scaling_factor": 1.5},
        ),
        ("granitemoehybrid", {"position_embedding_type": "rope", "mamba_n_groups": 1}),
        ("granitemoehybrid", {"num_local_experts": 0, "tie_word_embeddings": True}),
        ("qwen3_next", {"linear_num_key_heads": 3, "tie_word_embeddings": True}),
        ("qwen3_5_moe_text", {"linear_num_key_heads": 3, "linear_num_value_heads": 6}),
        ("qwen3_5_moe_text", {"linear_num_key_heads": 3, "linear_num_value_heads": 3}),
    ],
)
def test_other_settings(
    checkpoint_maker: Any, tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    _, source = checkpoint_maker(family, 3, **changes)
    convert(source, tmp_path / "x.gguf", family)
    compare(mk.load(tmp_path / "x.gguf"), mk.load(source), family)


@pytest.mark.skipif(llama_cpp_oracle.find() is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("family", ARCHES)
def test_llama_cpp_agrees_about_a_file(checkpoint_maker: Any, tmp_path: Path, family: str) -> None:
    _, source = checkpoint_maker(family, 2, **HYBRIDS[family])
    convert(source, tmp_path / "x.gguf", family)
    answer = llama_cpp_oracle.ask(tmp_path / "x.gguf", ids=IDS, count=6)
    model = mk.load(tmp_path / "x.gguf")
    np.testing.assert_allclose(model.forward(IDS), answer["logits"], rtol=0, atol=2e-3)
    assert model.generate(IDS, max_new_tokens=6) == answer["greedy"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention.head_count_kv": [1, 0]}, "head_count_kv.* no count, nor one for each layer"),
        ({"attention.head_count_kv": [0.5] * 5}, "head_count_kv.* no count"),
        ({"attention.head_count_kv": [0, -1, 0, 0, -1]}, "head_count_kv.* no count"),
        ({"ssm.inner_size": 10}, "mamba_expand is 0"),
        ({"ssm.state_size": 2**31}, "mamba_d_state"),
        ({"block_count": 4}, "lies beyond|no count, nor one"),
    ],
)
def test_a_wrong_key_is_named(
    checkpoint_maker: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    _, source = checkpoint_maker("jamba", 2, **HYBRIDS["jamba"])
    convert(source, tmp_path / "x.gguf", "jamba", **changes)
    with pytest.raises(mk.FileError, match=message):
        mk.load(tmp_path / "x.gguf")
