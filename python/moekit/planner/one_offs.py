"""Families whose layers differ in more than options: Gemma 4 and JetMoE."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from .attention import HEADS, HIDDEN
from .encoder_decoder import ENCODER_DECODERS
from .ffn import EXPERTS, TOP_K, feed_forward
from .fields import MAX_LAYERS, MAX_TOKENS, MAX_VOCABULARY, Fields, Flag
from .schedule import FULL, SLIDING, every, layer_types
from .tensors import Attend, Block, Cache, Inventory, Layer, Weight, matrix, vector

_ATTENTION = "attention"


def gemma4(f: Fields) -> Inventory:
    """Gemma 4: a dense network beside the experts, own head sizes for full-attention layers.

    The last `num_kv_shared_layers` read the cache of an earlier layer and have no key or value
    projection; small models add an embedding of its own for every layer.
    """
    hidden, count = f.size(HIDDEN), f.layers("num_hidden_layers")
    kinds = layer_types(every("sliding_window_pattern", 6, FULL, SLIDING))(f, count)
    kinds[-1] = FULL  # the class forces it
    shared = f.size("num_kv_shared_layers", 0, low=0, high=MAX_LAYERS)
    if shared > count:
        raise f.error("num_kv_shared_layers", f"there are only {count} layers")
    per_layer = f.size("hidden_size_per_layer_input", 256, null=0, low=0)
    moe = f.flag(Flag("enable_moe_block"))
    # layers differ by kind, by owning keys and values, and by an override of their own
    overrides = f.config.get("per_layer_config")
    rows = []
    for i, kind in enumerate(kinds):
        own = _override(f, overrides, i) if isinstance(overrides, Mapping) else None
        rows.append((kind, i >= count - shared, own))
    layers = []
    for (kind, reads, own), repeats in Counter(rows).items():
        block = _gemma_attention(f, hidden, kind, reads, own)
        wide = f.flag(Flag("use_double_wide_mlp")) and reads
        width = f.size("intermediate_size") * (2 if wide else 1)
        block += feed_forward("dense_ffn", width, hidden)
        norms = 4
        experts = top_k = 0
        if per_layer:
            block += matrix("dense_ffn", "per_layer_gate", per_layer, hidden)
            block += matrix("dense_ffn", "per_layer_projection", hidden, per_layer)
            norms += 1
        if moe:
            experts = f.experts(EXPERTS)
            top_k = f.top_k(("top_k_experts", *TOP_K), experts)
            width = f.size("moe_intermediate_size")
            block += matrix("router", "router", experts, hidden)
            block += vector("router", "router.scale", hidden)
            block += vector("router", "per_expert_scale", experts)
            block += _experts("routed", experts, top_k, 2 * width, width, hidden)
            norms += 3
        for _ in range(norms):
            block += vector("norms", "norm", hidden)
        layers.append(Layer(f"{kind}{' moe' if moe else ''}", block, repeats, experts, top_k))
    outside = _outside(f, hidden, default_tie=True)
    if per_layer:
        vocab = f.size("vocab_size_per_layer_input", 262_144, high=MAX_VOCABULARY)
        table = Weight("embedding", "per_layer_embedding", (vocab, count * per_layer), lookup=True)
        outside += Block((table,))
        outside += matrix("embedding", "per_layer_model_projection", count * per_layer, hidden)
        outside += vector("norms", "per_layer_norm", per_layer)
    return Inventory(f.model_type, layers, outside, hidden, _tied(f, True))


def _override(
    f: Fields, overrides: Mapping[Any, Any], layer: int
) -> tuple[int | None, int | None] | None:
    """Head size and key/value heads that `per_layer_config` gives a layer."""
    own = overrides.get(layer, overrides.get(str(layer)))
    if own is None:
        return None
    if not isinstance(own, Mapping):
        raise f.error("per_layer_config", "an object for each layer is required")
    inner = Fields(own, f.model_type + ".per_layer_config")
    head = inner.size("head_dim") if inner.has("head_dim") else None
    kv = inner.size("num_key_value_heads") if inner.has("num_key_value_heads") else None
    return head, kv


def _gemma_attention(
    f: Fields, hidden: int, kind: str, reads: bool, own: tuple[int | None, int | None] | None
) -> Block:
    heads = f.size(HEADS)
    dim, kv = f.size("head_dim", 256), f.size("num_key_value_heads", 4)
    full = kind == FULL
    same = f.flag(Flag("attention_k_eq_v")) and full
    if own is not None:
        dim, kv = own[0] or dim, own[1] or kv
    elif full and "per_layer_config" not in f.config:
        dim = f.size("global_head_dim", 512)
        if same and f.has("num_global_key_value_heads"):
            kv = f.size("num_global_key_value_heads")
    if kv > heads or heads % kv:
        raise f.error("num_key_value_heads", f"it must divide the {heads} query heads")
    bias = f.flag(Flag("attention_bias"))
    window = None if full else f.size("sliding_window", 512, high=MAX_TOKENS)
    block = matrix(_ATTENTION, "q", heads * dim, hidden, bias) + vector("norms", "q_norm", dim)
    if not reads:
        block += matrix(_ATTENTION, "k", kv * dim, hidden, bias) + vector("norms", "k_norm", dim)
        if not same:
            block += matrix(_ATTENTION, "v", kv * dim, hidden, bias)
        block += Block(caches=(Cache(2 * kv * dim, window=window),))
    block += matrix(_ATTENTION, "o", hidden, heads * dim, bias)
    return block + Block(attends=(Attend(heads, dim, dim, window=window),))


def jetmoe(f: Fields) -> Inventory:
    """JetMoE (arXiv 2404.07413): query and output projections are experts too (MoA)."""
    hidden, count = f.size(HIDDEN), f.layers("num_hidden_layers")
    experts = f.experts(EXPERTS)
    top_k = f.top_k(TOP_K, experts)
    kv, dim, width = (
        f.size("num_key_value_heads"),
        f.size("kv_channels", 128),
        f.size("intermediate_size"),
    )
    inner = kv * dim
    block = matrix(_ATTENTION, "kv", 2 * inner, hidden)
    for name, rows, cols in (("attention", inner, inner), ("mlp", 2 * width, width)):
        block += matrix("router", f"{name}.router", experts, hidden)
        block += _experts("routed", experts, top_k, rows, cols, hidden, name)
        block += vector("shared", f"{name}.bias", hidden)
        block += vector("norms", "norm", hidden)
    # each chosen attention expert attends with heads of its own to the shared keys
    block += Block(caches=(Cache(2 * inner),), attends=(Attend(kv * top_k, dim, dim),))
    layers = [Layer("moa moe", block, count, experts, top_k)]
    outside = _outside(f, hidden, default_tie=True)
    return Inventory(f.model_type, layers, outside, hidden, _tied(f, True))


def _experts(
    component: str, experts: int, top_k: int, rows: int, cols: int, hidden: int, name: str = "mlp"
) -> Block:
    """`experts` pairs of an input [rows, hidden] and an output [hidden, cols] projection."""
    return Block(
        (
            Weight(component, f"{name}.experts.in", (rows, hidden), experts, top_k),
            Weight(component, f"{name}.experts.out", (hidden, cols), experts, top_k),
        )
    )


def _tied(f: Fields, default: bool) -> bool:
    return f.flag(Flag("tie_word_embeddings", default))


def _outside(f: Fields, hidden: int, *, default_tie: bool) -> Block:
    vocab = f.size("vocab_size", high=MAX_VOCABULARY)
    tied = _tied(f, default_tie)
    block = Block((Weight("embedding", "embedding", (vocab, hidden), lookup=not tied),))
    block += vector("norms", "final_norm", hidden)
    return block if tied else block + matrix("head", "head", vocab, hidden)


# model_type -> a function that counts the whole configuration
WHOLE_MODELS: dict[str, Callable[[Fields], Inventory]] = {
    **ENCODER_DECODERS,
    "gemma4_text": gemma4,
    "jetmoe": jetmoe,
}
