"""A configuration from a GGUF file's header: the metadata keys of llama.cpp, in hub words.

The reading itself is `moekit.checkpoint`'s; this only renames. The vocabulary's size comes from
the token list or from `<arch>.vocab_size`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .fields import short

# general.architecture -> model_type
_ARCHITECTURES = {
    "llama": "mixtral",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "olmoe": "olmoe",
    "deepseek": "deepseek",
    "deepseek2": "deepseek_v3",
    "gpt-oss": "gpt_oss",
    "glm4moe": "glm4_moe",
    "llama4": "llama4_text",
    "granitemoe": "granitemoe",
    "dots1": "dots1",
    "phimoe": "phimoe",
    "minimax-m2": "minimax_m2",
    "hunyuan-moe": "hunyuan_v1_moe",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
# families whose config.json calls the experts' width intermediate_size
_ONE_WIDTH = ("gpt-oss", "llama4", "olmoe", "phimoe", "granitemoe", "minimax-m2", "hunyuan-moe")
# key after the architecture's name -> field of config.json
_KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "leading_dense_block_count": "first_k_dense_replace",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim",
    "interleave_moe_layer_step": "interleave_moe_layer_step",
    "nextn_predict_layers": "num_nextn_predict_layers",
    "vocab_size": "vocab_size",
}


def config_from_metadata(
    metadata: Mapping[str, Any], names: Collection[str] = ()
) -> dict[str, Any]:
    """The config.json that a GGUF header amounts to; `names` are its tensors'.

    What the metadata leave out shows in the tensors: tied embeddings, biases, norms of heads.
    """
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in _ARCHITECTURES:
        from moekit.checkpoint.gguf_config import gguf_architecture_names

        known = sorted({*_ARCHITECTURES, *gguf_architecture_names()})
        raise ValueError(
            f"[plan_model] general.architecture is {short(arch)}; known are {', '.join(known)}"
        )
    config: dict[str, Any] = {"model_type": _ARCHITECTURES[arch]}
    for key, name in _KEYS.items():
        value = metadata.get(f"{arch}.{key}")
        if value is not None:
            config[name] = _plain(value)
    if arch == "llama" and not config.get("num_experts"):
        config["model_type"] = "llama"
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is not None and "vocab_size" not in config:
        config["vocab_size"] = len(tokens)
    if arch == "deepseek2":
        _latent(config, metadata, arch)
    if arch == "llama4":
        config["intermediate_size_mlp"] = config.get("intermediate_size")
    if arch in _ONE_WIDTH and "moe_intermediate_size" in config:
        config["intermediate_size"] = config.pop("moe_intermediate_size")
    if names:
        config["tie_word_embeddings"] = "output.weight" not in names
        config["attention_bias"] = config["qkv_bias"] = "blk.0.attn_q.bias" in names
        config["use_qk_norm"] = "blk.0.attn_q_norm.weight" in names
    # MTP layers are counted among the blocks there, apart here
    extra, layers = config.get("num_nextn_predict_layers"), config.get("num_hidden_layers")
    if isinstance(extra, int) and isinstance(layers, int):
        config["num_hidden_layers"] = layers - extra
    return config


def _latent(config: dict[str, Any], metadata: Mapping[str, Any], arch: str) -> None:
    """MLA head sizes: newer files hold them under `_mla` keys, older ones under the plain keys."""
    config["num_key_value_heads"] = config.get("num_attention_heads")
    config.setdefault("q_lora_rank", None)
    rope = config.get("qk_rope_head_dim", 64)
    key = metadata.get(
        f"{arch}.attention.key_length_mla", metadata.get(f"{arch}.attention.key_length")
    )
    value = metadata.get(
        f"{arch}.attention.value_length_mla", metadata.get(f"{arch}.attention.value_length")
    )
    if key is not None:
        config["qk_nope_head_dim"] = _plain(key) - rope
    if value is not None:
        config["v_head_dim"] = _plain(value)


def _plain(value: Any) -> Any:
    """A Python number; lists that repeat one value (per-layer keys) become that value."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list) and value and all(v == value[0] for v in value):
        return value[0]
    return value


def config_from_gguf(path: Path) -> dict[str, Any]:
    """The configuration in the header of a GGUF file, of a split set's first, or of the one in a
    directory; no tensor is read."""
    from moekit import checkpoint
    from moekit.checkpoint.gguf_config import gguf_architecture_names, read_gguf_config

    with checkpoint.open_model(path) as opened:
        arch, names = opened.metadata.get("general.architecture"), set(opened.keys())
        routed = arch != "llama" or opened.metadata.get("llama.expert_count")
        if routed and arch in gguf_architecture_names():
            config = {"q_lora_rank": None, **read_gguf_config(opened)}
            config["lm_head_bias"] = "output.bias" in names
            config["num_nextn_predict_layers"] = opened.metadata.get(f"{arch}.nextn_predict_layers")
            return config
        return config_from_metadata(opened.metadata, names)
