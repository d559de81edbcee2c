"""GGUF files of hybrids: the same answers as the Hugging Face checkpoint they came from.

The writer here follows llama.cpp's converter: conversion/{jamba,lfm2,nemotron}.py.
"""

import json
import re
from pathlib import Path
from typing import Any

import gguf
import llama_cpp_oracle
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_models_gguf import vocabulary

import moekit as mk

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 90, 17]
ARCHES = {"jamba": "jamba", "lfm2_moe": "lfm2moe", "nemotron_h": "nemotron_h_moe"}
# What GGUF cannot say has to be as llama.cpp takes it for granted.
CHANGES: dict[str, dict[str, Any]] = {
    "jamba": {"num_hidden_layers": 5},
    "lfm2_moe": {},
    "nemotron_h": {
        "time_step_min": 1e-30,
        "layers_block_type": ["mamba", "moe", "attention", "moe", "mamba", "moe"],
        "head_dim": 24,
    },
}
_EXPERT = re.compile(r"(.*)\.experts\.(\d+)\.(\w+)\.weight")
_PARTS = {"w1": "gate", "w3": "up", "w2": "down"}


def tensors_of(source: Path, family: str, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Under GGUF's names, with what the converter changes."""
    plain = {k: v.astype(np.float32) for k, v in load_file(source / "model.safetensors").items()}
    layers = config.get("num_hidden_layers") or len(config["layers_block_type"])
    number = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == ARCHES[family])
    names = gguf.get_tensor_name_map(number, layers)
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
            name = name.replace("dt_bias", "dt.bias")
        elif name.endswith(("e_score_correction_bias", "expert_bias")):
            out[f"blk.{block}.exp_probs_b.bias"] = value
            continue
        elif "conv" in name and name.endswith("weight") and value.ndim == 3:
            value = value[:, 0]
        if family == "nemotron_h":
            if name.endswith((".A_log", ".D")):
                value = value.reshape(-1, 1)
            elif name.endswith("mixer.norm.weight"):
                value = value.reshape(config["n_groups"], -1)
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new is not None, name
        out[new] = value
    return out | {
        name: np.stack([bank[expert] for expert in range(len(bank))])
        for name, bank in banks.items()
    }


def convert(source: Path, target: Path, family: str, **changes: Any) -> None:
    """Write the checkpoint at `source` as GGUF; `changes` replace keys without the architecture."""
    config = json.loads((source / "config.json").read_text())
    get, arch = config.get, ARCHES[family]
    writer = gguf.GGUFWriter(target, arch)
    kv = config["num_key_value_heads"]
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
        "expert_count": get("num_experts") or get("n_routed_experts"),
        "expert_used_count": config["num_experts_per_tok"],
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


@pytest.mark.parametrize("family", ARCHES)
def test_a_float32_file_gives_the_bytes_of_its_source(
    checkpoint_maker: Any, tmp_path: Path, family: str
) -> None:
    _, source = checkpoint_maker(family, 2, **CHANGES[family])
    convert(source, tmp_path / "x.gguf", family)
    wanted, found = mk.load(source), mk.load(tmp_path / "x.gguf")
    assert found.forward(IDS).tobytes() == wanted.forward(IDS).tobytes()
    assert found.config["model_type"] == wanted.config["model_type"] == family
    assert found.moe_layers == wanted.moe_layers
    with pytest.raises(ValueError, match=r"\[save\] .* cannot be written back"):
        found.save(tmp_path / "out")
    with pytest.raises(ValueError, match=r"\[save\] .* has no architecture in GGUF"):
        wanted.save(tmp_path / "out.gguf")


def test_experts_of_a_smaller_space(checkpoint_maker: Any, tmp_path: Path) -> None:
    changes = {**CHANGES["nemotron_h"], "moe_latent_size": 30, "routed_scaling_factor": 1.5}
    _, source = checkpoint_maker("nemotron_h", 3, **changes)
    convert(source, tmp_path / "x.gguf", "nemotron_h")
    wanted, found = mk.load(source), mk.load(tmp_path / "x.gguf")
    assert found.forward(IDS).tobytes() == wanted.forward(IDS).tobytes()


@pytest.mark.skipif(llama_cpp_oracle.find() is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("family", ARCHES)
def test_llama_cpp_agrees_about_a_file(checkpoint_maker: Any, tmp_path: Path, family: str) -> None:
    _, source = checkpoint_maker(family, 2, **CHANGES[family])
    convert(source, tmp_path / "x.gguf", family)
    answer = llama_cpp_oracle.ask(tmp_path / "x.gguf", ids=IDS, count=6)
    model = mk.load(tmp_path / "x.gguf")
    # Its cache of keys and values has 16 bits.
    np.testing.assert_allclose(model.forward(IDS), answer["logits"], rtol=0, atol=0.1)
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
    _, source = checkpoint_maker("jamba", 2, **CHANGES["jamba"])
    convert(source, tmp_path / "x.gguf", "jamba", **changes)
    with pytest.raises(mk.FileError, match=message):
        mk.load(tmp_path / "x.gguf")
