"""What each layer of a GGUF file is: attention or states, a window or none, dense or not."""

from .gguf_architectures import Architecture
from .gguf_keys import MAX_LAYERS, Keys

FULL, SLIDING = "full_attention", "sliding_attention"
HEADS = ("attention.head_count", "attention.head_count_kv")
# What a head has of the channels of a layer's states.
_WIDTHS = {
    "nemotron_h": "mamba_head_dim",
    "qwen3_next": "linear_value_head_dim",
    "qwen3_5_moe_text": "linear_value_head_dim",
}


def read_kinds(config: dict[str, object], row: Architecture, keys: Keys) -> None:
    """What each layer of a hybrid is: where there are keys, a router, a feed-forward layer."""
    checkpoint, layers = keys.checkpoint, keys.field("block_count", int)
    heads = keys.by_layer("attention.head_count_kv", layers)
    inner = keys.by_layer("feed_forward_length", layers)
    routers = [f"blk.{n}.ffn_gate_inp.weight" in checkpoint for n in range(layers)]
    config["num_key_value_heads"] = max(heads, default=0) or None
    config["intermediate_size"] = max(inner, default=0) or None
    kinds = ["full_attention" if count else row.recurrent for count in heads]
    if row.family == "nemotron_h":
        for n in range(layers):
            if routers[n]:
                kinds[n] = "moe"
            elif not heads[n] and inner[n]:
                kinds[n] = "mlp"
    if row.family == "kimi_linear":
        config["linear_num_heads"] = config.get("num_attention_heads")
    if row.family == "granitemoehybrid":
        rotates = keys.get("rope.scaling.finetuned") is True
        config["position_embedding_type"] = "rope" if rotates else "nope"
    config[row.kinds] = kinds
    if row.family == "jamba":
        config["mlp_layer_types"] = ["sparse" if sparse else "dense" for sparse in routers]


def read_inner_size(config: dict[str, object], row: Architecture, keys: Keys) -> None:
    """All channels of a layer's states: as a head's share, or as a multiple of the stream."""
    total = keys.get("ssm.inner_size")
    field = _WIDTHS.get(row.family, "mamba_expand")
    parts = keys.get("embedding_length" if field == "mamba_expand" else "ssm.time_step_rank")
    if all(type(size) is int and size > 0 for size in (total, parts)):
        config[field] = total // parts


def window_layers(row: Architecture, layers: int) -> list[bool]:
    """Which layers see a window where the architecture decides."""
    if row.windows == "alternate":
        return [n % 2 == 0 for n in range(layers)]
    if row.windows == "but first":
        return [n % 4 != 0 for n in range(layers)]
    return [row.windows == "but fourth" and (n + 1) % 4 != 0 for n in range(layers)]


def read_layers(config: dict[str, object], row: Architecture, keys: Keys) -> None:
    """`layer_types`, where layers differ and the family has no rule of its own."""
    layers = keys.field("block_count", int) - keys.field("nextn_predict_layers", int, 0)
    if not (row.mixer or row.windows or row.sparse) or not 0 < layers <= MAX_LAYERS:
        return
    if row.mixer:
        heads = keys.by_layer("attention.head_count_kv", layers)
        config["layer_types"] = [FULL if count else row.mixer for count in heads]
        config["num_key_value_heads"] = max(heads)
        return
    windowed = window_layers(row, layers)
    if row.windows == "pattern" and "attention.sliding_window_pattern" in keys:
        blocks = layers + keys.field("nextn_predict_layers", int, 0)
        found = keys.by_layer("attention.sliding_window_pattern", blocks)
        windowed = [bool(w) for w in found[:layers]]
    if row.rotations and not keys.get("attention.sliding_window"):
        windowed = [False] * layers
    config["layer_types"] = [SLIDING if w else FULL for w in windowed]
    if row.rotations:
        _read_counts(config, row, keys, windowed)
    if row.sparse:
        routers = [f"blk.{n}.ffn_gate_inp.weight" in keys.checkpoint for n in range(layers)]
        config["mlp_layer_types"] = ["sparse" if sparse else "dense" for sparse in routers]


def _read_counts(
    config: dict[str, object], row: Architecture, keys: Keys, windowed: list[bool]
) -> None:
    """Heads that differ by layer: of queries in Laguna, of keys in MiMo, twice with a window."""
    layers = len(windowed)
    blocks = layers + keys.field("nextn_predict_layers", int, 0)
    heads, shared = (keys.by_layer(key, blocks)[:layers] for key in HEADS)
    config["num_attention_heads"] = max(heads)
    if row.family == "laguna":
        config["num_attention_heads_per_layer"] = heads
    factors = [2 if w and row.family == "mimo_v2_flash" else 1 for w in windowed]
    least = shared[0] // factors[0]
    one = row.family == "laguna" or len(set(heads)) == 1
    if not one or shared != [least * factor for factor in factors]:
        text = f"has {heads[:8]} heads and {shared[:8]} of keys; no {row.name} has these"
        raise keys.checkpoint.error(None, text)
    config["num_key_value_heads"] = least
    if row.family == "laguna":
        gate = keys.checkpoint.info("blk.0.attn_gate.weight").shape[0]
        config["gating"] = "per-head" if gate == heads[0] else "per-element"
