"""Tiny Hugging Face checkpoints as GGUF files, by the published writer and name map (gguf-py) and
the conventions of llama.cpp's converter, written down here a second time."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

Tensors = dict[str, np.ndarray]
Q = gguf.GGMLQuantizationType

ARCHES = {
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "olmoe": "olmoe",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "gpt_oss": "gpt-oss",
    "glm4_moe": "glm4moe",
    "granitemoe": "granitemoe",
    "granitemoeshared": "granitemoe",
    "phimoe": "phimoe",
    "dots1": "dots1",
    "ernie4_5_moe": "ernie4_5-moe",
    "hunyuan_v1_moe": "hunyuan-moe",
    "minimax_m2": "minimax-m2",
    "llama4_text": "llama4",
    "dbrx": "dbrx",
}
_SINGLE = re.compile(r"(.*experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
_ROLES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


def pairs_from_halves(w: np.ndarray, heads: int) -> np.ndarray:
    """Row (head, half, i) of a rotated matrix to (head, i, half), in plain loops."""
    size = len(w) // heads
    out = np.empty_like(w)
    for head in range(heads):
        for half in range(2):
            for i in range(size // 2):
                out[head * size + 2 * i + half] = w[head * size + half * (size // 2) + i]
    return out


def _merge(tensors: Tensors) -> Tensors:
    """Experts of a layer in one bank each of gate, up and down."""
    out: Tensors = {}
    banks: dict[str, dict[int, np.ndarray]] = {}
    for name, value in tensors.items():
        match = _SINGLE.fullmatch(name)
        if match:
            role = _ROLES.get(match[3], match[3])
            banks.setdefault(f"{match[1]}.{role}.weight", {})[int(match[2])] = value
        else:
            out[name] = value
    for name, found in banks.items():
        out[name] = np.stack([found[e] for e in range(len(found))])
    return out


def _paired(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    counts = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    return {
        name: pairs_from_halves(value, counts[name.split(".")[-2]])
        if name.split(".")[-2] in counts
        else value
        for name, value in tensors.items()
    }


def _latent(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    out: Tensors = {}
    heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
    for name, value in tensors.items():
        if ".kv_b_proj." not in name:
            out[name] = value
            continue
        both = value.reshape(heads, nope + config["v_head_dim"], -1)
        out[name.replace("kv_b_proj", "k_b_proj")] = both[:, :nope].transpose(0, 2, 1)
        out[name.replace("kv_b_proj", "v_b_proj")] = both[:, nope:]
    return out


def _gpt_oss(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    out: Tensors = {}
    for name, value in tensors.items():
        if name.endswith("gate_up_proj"):
            turned = value.swapaxes(1, 2)
            out[name.replace("gate_up_proj", "gate_proj.weight")] = turned[:, 0::2]
            out[name.replace("gate_up_proj", "up_proj.weight")] = turned[:, 1::2]
        elif name.endswith("gate_up_proj_bias"):
            out[name.replace("gate_up_proj_bias", "gate_proj.bias")] = value[:, 0::2]
            out[name.replace("gate_up_proj_bias", "up_proj.bias")] = value[:, 1::2]
        elif name.endswith("down_proj"):
            out[name + ".weight"] = value.swapaxes(1, 2)
        elif name.endswith("down_proj_bias"):
            out[name.replace("_bias", ".bias")] = value
        elif name.endswith("sinks"):
            out[name + ".weight"] = value
        else:
            out[name] = value
    return out


def _granite(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    out: Tensors = {}
    for name, value in _paired(tensors, config).items():
        if name.endswith("input_linear.weight"):
            gate, up = np.split(value, 2, axis=-2)
            block = name.split(".")[2]
            suffix = "shexp" if "shared_mlp" in name else "exps"
            out[f"=blk.{block}.ffn_gate_{suffix}.weight"] = gate
            out[f"=blk.{block}.ffn_up_{suffix}.weight"] = up
        else:
            out[name] = value
    return out


def _llama4(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    out: Tensors = {}
    for name, value in tensors.items():
        block = name.split(".")[2] if ".layers." in name else ""
        if name.endswith("experts.gate_up_proj"):
            gate, up = np.split(value.swapaxes(1, 2), 2, axis=1)
            out[f"=blk.{block}.ffn_gate_exps.weight"] = gate
            out[f"=blk.{block}.ffn_up_exps.weight"] = up
        elif name.endswith("experts.down_proj"):
            out[f"=blk.{block}.ffn_down_exps.weight"] = value.swapaxes(1, 2)
        else:
            out[name] = value
    return out


def _dbrx(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    experts = config["ffn_config"]["moe_num_experts"]
    out: Tensors = {}
    for name, value in tensors.items():
        if ".experts.mlp." in name:
            bank = value.reshape(experts, -1, value.shape[-1])
            out[name + ".weight"] = bank.swapaxes(1, 2) if name.endswith("w2") else bank
        else:
            out[name] = value
    return out


_CHANGES: dict[str, Callable[[Tensors, dict[str, Any]], Tensors]] = {
    "mixtral": _paired,
    "deepseek_v2": _latent,
    "deepseek_v3": _latent,
    "gpt_oss": _gpt_oss,
    "granitemoe": _granite,
    "granitemoeshared": _granite,
    "llama4_text": _llama4,
    "dbrx": _dbrx,
}


def convert(
    source: Path,
    target: Path,
    quantise: Callable[[str, np.ndarray], Q] | None = None,
    add: Callable[[Any], None] | None = None,
) -> None:
    """Write `target` from the checkpoint at `source`.

    `quantise(name, value)` is the type of each matrix (F32 unless given), `add` writes more keys.
    """
    config = json.loads((source / "config.json").read_text())
    family = config["model_type"]
    arch = ARCHES[family]
    tensors: Tensors = {}
    for file in sorted(source.glob("*.safetensors")):
        tensors |= {k: v.astype(np.float32) for k, v in load_file(file).items()}
    tensors = _merge(_CHANGES.get(family, lambda t, c: t)(tensors, config))
    blocks = config.get("num_hidden_layers") or config["n_layers"]
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(number, blocks)
    writer = gguf.GGUFWriter(target, arch)
    add_metadata(writer, config)
    if add is not None:
        add(writer)
    for name, value in tensors.items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        if name.startswith("="):
            new = name[1:]
        elif name.endswith("e_score_correction_bias"):
            bid = name.split(".")[2]
            new = f"blk.{bid}.exp_probs_b.bias"
        else:
            plain = re.sub(r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.", _mixtral, name)
            new = names.get_name(plain, try_suffixes=(".weight", ".bias"))
            assert new is not None, name
        value = np.ascontiguousarray(value)
        if (
            value.shape[0] == 1
            and value.ndim == 2
            and new.endswith(("exp_probs_b.bias", "ffn_gate_inp_shexp.weight"))
        ):
            value = value[0]
        kind = Q.F32
        if quantise is not None and value.ndim > 1 and "ffn_gate_inp" not in new:
            kind = quantise(new, value)
        if kind == Q.F32:
            writer.add_tensor(new, value)
        else:
            writer.add_tensor(new, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _mixtral(match: re.Match[str]) -> str:
    return f"model.layers.{match[1]}.mlp.experts."


def add_metadata(writer: Any, config: dict[str, Any]) -> None:
    """The keys that the converter writes for a config.json."""
    family = config["model_type"]
    get = config.get
    attention, ffn = get("attn_config") or {}, get("ffn_config") or {}
    heads = get("n_heads") or config["num_attention_heads"]
    hidden = get("hidden_size") if "hidden_size" in config else config["d_model"]
    if family == "dbrx":
        hidden = config["d_model"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(get("max_position_embeddings") or config["max_seq_len"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(get("num_hidden_layers") or config["n_layers"])
    writer.add_head_count(heads)
    latent = family in ("deepseek_v2", "deepseek_v3")
    kv = attention.get("kv_n_heads") or get("num_key_value_heads") or heads
    writer.add_head_count_kv(1 if latent else kv)
    dense = get("intermediate_size_mlp") or get("intermediate_size") or ffn.get("ffn_hidden_size")
    writer.add_feed_forward_length(dense)
    if family in ("phimoe", "dbrx"):
        writer.add_layer_norm_eps(get("rms_norm_eps") or 1e-5)
    if family != "dbrx":
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    experts = (
        get("num_local_experts")
        or get("n_routed_experts")
        or get("num_experts")
        or get("moe_num_experts")
        or ffn.get("moe_num_experts")
    )
    writer.add_expert_count(experts)
    used = get("num_experts_per_tok") or get("moe_k") or get("moe_topk") or ffn.get("moe_top_k")
    writer.add_expert_used_count(used)
    rope = {**(get("rope_scaling") or {}), **(get("rope_parameters") or {})}
    writer.add_rope_freq_base(float(rope.get("rope_theta") or get("rope_theta") or 1e4))
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if latent:
            writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    head_dim = get("head_dim")
    width = head_dim or hidden // heads
    if latent:
        if get("q_lora_rank"):
            writer.add_q_lora_rank(config["q_lora_rank"])
        writer.add_kv_lora_rank(config["kv_lora_rank"])
        nope, rotary = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
        writer.add_key_length(config["kv_lora_rank"] + rotary)
        writer.add_value_length(config["kv_lora_rank"])
        writer.add_key_length_mla(nope + rotary)
        writer.add_value_length_mla(config["v_head_dim"])
        writer.add_rope_dimension_count(rotary)
    else:
        if head_dim:
            writer.add_key_length(head_dim)
            writer.add_value_length(head_dim)
        partial = rope.get("partial_rotary_factor") or 1.0
        writer.add_rope_dimension_count(int(width * partial))
    if get("moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    elif family in ("gpt_oss", "hunyuan_v1_moe", "minimax_m2", "llama4_text"):
        writer.add_expert_feed_forward_length(config["intermediate_size"])
    if get("shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if get("shared_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config["shared_intermediate_size"])
    if get("first_k_dense_replace") is not None:
        writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    shared = get("n_shared_experts") or get("moe_num_shared_experts")
    if shared is not None:
        writer.add_expert_shared_count(shared)
    if get("routed_scaling_factor"):
        writer.add_expert_weights_scale(config["routed_scaling_factor"])
    if get("norm_topk_prob") and "n_routed_experts" in config:
        writer.add_expert_weights_norm(True)
    if get("n_group"):
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
    if family in ("deepseek_v3", "glm4_moe", "dots1", "minimax_m2"):
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if family in ("gpt_oss", "phimoe") and get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if get("clip_qkv") or attention.get("clip_qkv"):
        writer.add_clamp_kqv(get("clip_qkv") or attention["clip_qkv"])
    for field, method in (
        ("attention_multiplier", writer.add_attention_scale),
        ("embedding_multiplier", writer.add_embedding_scale),
        ("residual_multiplier", writer.add_residual_scale),
        ("logits_scaling", writer.add_logit_scale),
    ):
        if get(field):
            method(config[field])
    if family == "ernie4_5_moe":
        writer.add_interleave_moe_layer_step(config["moe_layer_interval"])
        writer.add_leading_dense_block_count(config["moe_layer_start_index"])
        # The converter's formula happens to give this for the released sizes.
        wide = config["moe_intermediate_size"] * config["moe_num_shared_experts"]
        writer.add_expert_shared_feed_forward_length(wide)
    if family == "llama4_text":
        writer.add_interleave_moe_layer_step(config["interleave_moe_layer_step"])
        writer.add_uint32("llama4.attention.chunk_size", config["attention_chunk_size"])
