"""From a configuration to its inventory: look the family up, count its distinct layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from . import schedule as s
from .attention import HIDDEN
from .families import ALIASES, FAMILIES, Family
from .fields import MAX_LAYERS, MAX_VOCABULARY, Fields, Flag, Names, short
from .one_offs import WHOLE_MODELS
from .recurrent import Mamba2
from .tensors import Block, Inventory, Layer, Weight, matrix, vector

_LAYERS: Names = ("num_hidden_layers", "n_layers", "num_layers")


def known_types() -> list[str]:
    """Every model_type that can be planned, sorted."""
    return sorted({*FAMILIES, *ALIASES, *WHOLE_MODELS})


def take_inventory(config: Mapping[str, Any]) -> Inventory:
    """Count a configuration; a ValueError names what is missing, absurd or unknown."""
    given = config.get("model_type")
    if not isinstance(given, str) or not given:
        raise ValueError(
            f"[plan_model] model_type is {short(given)}; "
            f"one of {', '.join(known_types())} is required"
        )
    name = ALIASES.get(given, given)
    f = Fields(config, given)
    f.check_finite()
    if name in WHOLE_MODELS:
        return WHOLE_MODELS[name](f)
    if name not in FAMILIES:
        near = get_close_matches(given[:60], known_types(), 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"[plan_model] model_type {given[:60]!r} is unknown{hint}; "
            f"known are {', '.join(known_types())}"
        )
    if name == "dbrx":
        f = _dbrx(f)
    return _decoder(f, FAMILIES[name])


def _dbrx(f: Fields) -> Fields:
    """DBRX keeps its sizes in attn_config and ffn_config; lay them out as the others have them."""
    attention, ffn = f.section("attn_config"), f.section("ffn_config")
    flat = dict(f.config)
    flat["num_key_value_heads"] = attention.size("kv_n_heads", 1)
    flat["num_experts"] = ffn.experts("moe_num_experts", 4)
    flat["num_experts_per_tok"] = ffn.top_k("moe_top_k", flat["num_experts"], 1)
    flat["moe_intermediate_size"] = ffn.size("ffn_hidden_size", 3584)
    return Fields(flat, f.model_type)


def _decoder(f: Fields, family: Family) -> Inventory:
    hidden, vocab = f.size(HIDDEN), f.size("vocab_size", high=MAX_VOCABULARY)
    count = _layer_count(f)
    single = isinstance(family.linear, Mamba2) and family.norms == 1  # one mixer a layer
    attention = family.kinds(f, count)
    ffn = ["" for _ in attention] if single else family.sparse(f, count)
    if len(attention) != count or len(ffn) != count:
        raise f.error(f.find(_LAYERS)[0], "the lists of layer kinds are shorter")
    heads = _heads_per_layer(f, count) if family.own_heads else [None] * count
    layers = []
    for (kind, mlp, own), repeats in Counter(zip(attention, ffn, heads, strict=True)).items():
        g = f if own is None else Fields({**f.config, "num_attention_heads": own}, f.model_type)
        layers.append(_layer(g, family, kind, mlp, repeats))
    layers += _mtp(f, family, attention, ffn)
    tied = family.ties and f.flag(Flag(f.find(family.tie_names)[0], family.tie))
    outside = Block((Weight("embedding", "embedding", (vocab, hidden), lookup=not tied),))
    outside += _norms(hidden, 1, family.norm_bias, "final_norm")
    if not tied:
        outside += matrix("head", "head", vocab, hidden)
    if f.flag(family.head_bias):
        outside += vector("head", "head.bias", vocab)
    if family.hyper:
        streams = f.size("hc_mult", 4)
        outside += matrix("residual", "hc_head", streams, streams * hidden)
        outside += vector("residual", "hc_head.base", streams)
        outside += vector("residual", "hc_head.scale", 1)
    return Inventory(f.model_type, layers, outside, hidden, tied)


def _layer_count(f: Fields) -> int:
    """The field, or the length of Nemotron-H's list of layers, which may stand alone."""
    if not f.has(_LAYERS):
        for name in ("layers_block_type", "hybrid_override_pattern"):
            listed = f.config.get(name)
            if isinstance(listed, list | str) and 0 < len(listed) <= MAX_LAYERS:
                return len(listed)
    return f.layers(_LAYERS)


def _heads_per_layer(f: Fields, count: int) -> list[int | None]:
    """Laguna gives each layer its own number of query heads."""
    own = f.integers("num_attention_heads_per_layer", low=1, high=1 << 20)
    if own is None:
        return [None] * count
    if len(own) != count:
        raise f.error("num_attention_heads_per_layer", f"{count} entries are required")
    return list(own)


def _layer(f: Fields, family: Family, kind: str, mlp: str, repeats: int) -> Layer:
    hidden = f.size(HIDDEN)
    name = {"mamba": s.LINEAR, "conv": s.LINEAR, "attention": s.FULL}.get(kind, kind)
    block, experts, top_k = Block(), 0, 0
    if name == s.LINEAR:
        if family.linear is None:
            raise f.error("layer_types", "this family has no linear attention")
        block += family.linear.build(f, name)
    elif name not in ("moe", "mlp"):
        block += family.mixer.build(f, name).times(family.mixers)
    ffn = {"moe": "moe", "mlp": s.DENSE}.get(name, mlp)
    if ffn == s.DENSE or family.moe is None:
        if ffn:
            dense = family.dense
            if dense is None:
                raise f.error("mlp_layer_types", "this family has no dense layers")
            block += dense.build(f)
    elif ffn:
        experts, top_k = family.moe.sizes(f)
        block += family.moe.build(f, ffn)
        if family.mixers > 1 and family.dense is not None:
            block += family.dense.build(f).times(family.mixers)
    block += _norms(hidden, family.norms, family.norm_bias, "norm")
    if family.hyper:
        block += _hyper_connections(f, hidden)
    label = " ".join(part for part in (name, ffn) if part)
    return Layer(label, block, repeats, experts, top_k)


def _norms(hidden: int, count: int, bias: bool, name: str) -> Block:
    block = Block()
    for _ in range(count):
        block += vector("norms", name, hidden)
        if bias:
            block += vector("norms", name + ".bias", hidden)
    return block


def _hyper_connections(f: Fields, hidden: int) -> Block:
    """Manifold-constrained hyper-connections (arXiv 2512.24880): for the attention and the FFN.

    From the n streams of width hidden: n read weights, n write weights and an n x n mixing.
    """
    streams = f.size("hc_mult", 4)
    rows = streams * (2 + streams)
    block = Block()
    for part in ("attention", "ffn"):
        block += matrix("residual", f"hc_{part}", rows, streams * hidden)
        block += vector("residual", f"hc_{part}.base", rows)
        block += vector("residual", f"hc_{part}.scale", 3)
    return block


def _mtp(f: Fields, family: Family, attention: list[str], ffn: list[str]) -> list[Layer]:
    """Multi-token prediction layers (DeepSeek-V3, arXiv 2412.19437, section 2.2).

    Each is a layer of the last kind plus a projection of [hidden; embedding] and three norms;
    embedding and head are the model's own. Checkpoints store them; generation does not run them.
    """
    if not family.mtp_names or not f.has(family.mtp_names):
        return []
    count = f.size(family.mtp_names, low=0, high=64)
    if not count:
        return []
    hidden = f.size(HIDDEN)
    layer = _layer(f, family, attention[-1], ffn[-1], count)
    extra = matrix("mtp", "eh_proj", hidden, 2 * hidden)
    for name in ("enorm", "hnorm", "shared_head.norm"):
        extra += vector("norms", name, hidden)
    return [Layer("mtp", layer.block + extra, count, layer.experts, layer.top_k, mtp=True)]
