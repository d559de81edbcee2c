"""What the GGUF files of single families say in a way of their own, as fields of a config.json.

The reverse is `saving.gguf_families`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from .gguf_keys import MAX_LAYERS, Keys, share_of
from .gguf_layers import FULL, SLIDING
from .tensors import Checkpoint

# What GGUF calls the layers of DeepSeek-V4: tokens to an entry, 0 for a window alone.
RATIOS = {
    0: SLIDING,
    4: "compressed_sparse_attention",
    128: "heavily_compressed_attention",
}
BLOCKS = "minimax_m3_sparse"
# Parts of MiniMax-01 that have two factors each, by the names in its config.json.
STREAMS = ("linear_attn", "full_attn", "mlp")
# Factors of frequencies from here on stand for pairs that do not rotate (the converter's is 1e30).
STILL = 1e20


def _kinds(config: Mapping[str, Any], keys: Keys) -> list[str]:
    """What each layer is, as `read_layers` found it; FileError for an absurd number of them."""
    found: list[str] | None = config.get("layer_types")
    if found is None:
        text = f"has {keys.field('block_count', int)} layers; 1 to {MAX_LAYERS} are read"
        raise keys.checkpoint.error(None, text)
    return found


def _gemma4(config: dict[str, Any], keys: Keys) -> None:
    """Heads that differ by the kind of layer, and a rotation of a part of the full ones' pairs."""
    kinds = _kinds(config, keys)
    layers = len(kinds)
    large = keys.field("attention.key_length", int)
    small = keys.field("attention.key_length_swa", int, large)
    counts = keys.by_layer("attention.head_count_kv", layers)
    usual = next((n for n, kind in enumerate(kinds) if kind == SLIDING), 0)
    config["head_dim"], config["num_key_value_heads"] = small, counts[usual]
    overrides: dict[str, dict[str, int]] = {}
    for n, kind in enumerate(kinds):
        own = {"head_dim": large} if kind == FULL and large != small else {}
        if counts[n] != counts[usual]:
            own["num_key_value_heads"] = counts[n]
        if own:
            overrides[str(n)] = own
    config["per_layer_config"] = overrides
    config["attention_k_eq_v"] = any(
        kind == FULL and f"blk.{n}.attn_v.weight" not in keys.checkpoint
        for n, kind in enumerate(kinds)
    )
    config["hidden_size_per_layer_input"] = keys.get("embedding_length_per_layer_input") or 0
    if "per_layer_token_embd.weight" in keys.checkpoint:
        table = keys.checkpoint.info("per_layer_token_embd.weight")
        config["vocab_size_per_layer_input"] = table.shape[0]
    config["num_kv_shared_layers"] = keys.get("attention.shared_kv_layers") or 0
    # 0 is none.
    config["final_logit_softcapping"] = config.get("final_logit_softcapping") or None
    config["enable_moe_block"] = "blk.0.ffn_gate_inp.weight" in keys.checkpoint
    theta = keys.field("rope.freq_base", float, 1e6)
    config["rope_parameters"] = {
        SLIDING: {
            "rope_type": "default",
            "rope_theta": keys.field("rope.freq_base_swa", float, 10000.0),
        },
        FULL: {
            "rope_type": "proportional",
            "rope_theta": theta,
            "partial_rotary_factor": _rotating_part(keys.checkpoint, large),
        },
    }


def _rotating_part(checkpoint: Checkpoint, width: int) -> float:
    """The share of a head's pairs that rotate: their factors are 1, those of the others huge."""
    name = "rope_freqs.weight"
    if name not in checkpoint or width < 2:
        return 1.0
    info = checkpoint.info(name)
    if info.dtype != "F32" or info.shape != (width // 2,):
        text = f"is {info.dtype} {list(info.shape)}; F32 {[width // 2]} is required"
        raise checkpoint.error(info, text)
    factors = checkpoint[name]
    rotating = int((factors == 1).sum())
    if not rotating or (factors[:rotating] != 1).any() or not (factors[rotating:] >= STILL).all():
        text = f"holds other factors than 1 and, behind these, {STILL:g} or more"
        raise checkpoint.error(info, text)
    return share_of(2 * rotating, width)


def _granitemoe_swa(config: dict[str, Any], keys: Keys) -> None:
    """Layers without position among those with one base."""
    layers = len(_kinds(config, keys))
    pattern = "attention.rope_pattern"
    rotates = keys.by_layer(pattern, layers) if pattern in keys else [1] * layers
    theta = config["rope_parameters"]["rope_theta"]
    config["layer_rope_theta"] = [theta if on else 0.0 for on in rotates]


def _minimax_m3(config: dict[str, Any], keys: Keys) -> None:
    """Layers behind the dense ones choose blocks; a shared expert as wide as so many experts."""
    config["layer_types"] = [
        BLOCKS if f"blk.{n}.indexer.q_proj.weight" in keys.checkpoint else FULL
        for n in range(len(_kinds(config, keys)))
    ]
    config["shared_intermediate_size"] = keys.field("expert_feed_forward_length", int) * keys.field(
        "expert_shared_count", int, 0
    )
    config["rope_parameters"]["partial_rotary_factor"] = config.pop("partial_rotary_factor", 1.0)
    config["norms_hold_one"] = True


def _minimax(config: dict[str, Any], keys: Keys) -> None:
    """Layers of lightning attention, and one factor of the stream for all of them."""
    layers = keys.field("block_count", int)
    recurrent = "attention.recurrent_layers"
    if recurrent in keys or not 0 < layers <= MAX_LAYERS:
        linear = keys.by_layer(recurrent, layers)
    else:
        period = keys.field("full_attention_interval", int, 8)
        linear = [period < 1 or (n + 1) % period for n in range(layers)]
    config["layer_types"] = ["linear_attention" if flag else FULL for flag in linear]
    scale = keys.field("residual_scale", float)
    for part in STREAMS:
        config[f"{part}_alpha_factor"], config[f"{part}_beta_factor"] = scale, 1.0


def _deepseek_v4(config: dict[str, Any], keys: Keys) -> None:
    """Kinds of layers by their ratios, the first ones routed by a table, and two rotations."""
    layers = keys.field("block_count", int)
    ratios = keys.by_layer("attention.compress_ratios", layers, longer=True)
    unknown = [ratio for ratio in ratios if ratio not in RATIOS]
    if unknown:
        known = ", ".join(map(str, RATIOS))
        text = f"has layers of ratio {unknown[0]}; {known} are read"
        raise keys.checkpoint.error(None, text)
    config["layer_types"] = [RATIOS[ratio] for ratio in ratios]
    config["compress_rates"] = {kind: ratio for ratio, kind in RATIOS.items() if ratio}
    hashed = keys.field("hash_layer_count", int, 0)
    config["mlp_layer_types"] = ["hash_moe" if n < hashed else "moe" for n in range(layers)]
    rotary, width = keys.field("rope.dimension_count", int), keys.get("attention.key_length")
    plain = config["rope_parameters"]
    theta = keys.field("attention.compress_rope_freq_base", float, 160000.0)
    far = {**plain, "rope_theta": theta}
    if far["rope_type"] == "yarn":
        far["attention_factor"] = 1.0
    main = {"rope_type": "default", "rope_theta": plain["rope_theta"]}
    if type(width) is int and width > 0:
        part = share_of(rotary, width)
        config["partial_rotary_factor"] = part
        main["partial_rotary_factor"] = far["partial_rotary_factor"] = part
    config["compress_rope_theta"] = theta
    config["rope_theta"] = plain["rope_theta"]
    config["rope_parameters"] = {"main": main, "compress": far}


READ: Mapping[str, Callable[[dict[str, Any], Keys], None]] = {
    "gemma4_text": _gemma4,
    "granitemoe_swa": _granitemoe_swa,
    "minimax": _minimax,
    "minimax_m3_vl_text": _minimax_m3,
    "deepseek_v4": _deepseek_v4,
}
