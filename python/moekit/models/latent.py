"""What DeepSeek's line shares: latent attention, and a mixture whose router goes by groups.

Families differ in the score and in a few options; each one's file says which.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..config import Config
from ..nn import MLA, Block, Indexer, Model, MoE, QueryTemperature, RMSNorm
from ..ops import PackedWeight
from .base import (
    MAX_HEAD_DIM,
    assemble,
    attention_heads,
    layer_count,
    read_activation,
    rope_options,
    sparse_layers,
    top_k,
)
from .mixture import Mixture, group_rule
from .reader import Reader
from .rope import RopeSettings, read_rope, yarn_softmax_scale

# The norms inside of latent attention do not follow rms_norm_eps.
LATENT_EPS = 1e-6

# Both make a part of a layer from its tensors; attention may depend on the layer's number.
MakeAttention = Callable[[int, Reader], MLA]
MakeMixture = Callable[[Reader], MoE]
# A layer's own indexer, or how many tokens the one of an earlier layer selects for it.
MakeSelection = Callable[[int, Reader], Indexer | int]


def latent_decoder(
    config: Config,
    reader: Reader,
    attention: MakeAttention,
    mixture: MakeMixture,
    *,
    first_dense: int,
    eps: float = 1e-6,
    post_norm: Callable[[bool, Reader], RMSNorm | None] | None = None,
) -> Model:
    """Pre-norm blocks; the `first_k_dense_replace` first ones (`first_dense` by default) dense.

    `post_norm`, of a sparse or dense layer, acts on what its feed-forward half gives.
    """
    hidden = config.size("hidden_size")
    eps = config.number("rms_norm_eps", default=eps, above=0)
    layers = layer_count(config)
    dense = config.size("first_k_dense_replace", default=first_dense, least=0)
    sparse = sparse_layers(config, layers, 1, list(range(min(dense, layers))))
    config.require(config.size("moe_layer_freq", default=1) == 1, "moe_layer_freq", "1")
    reader.activation = read_activation(config)

    def block(n: int, layer: Reader) -> Block:
        return Block(
            layer.norm("input_layernorm", hidden, eps),
            attention(n, layer.under("self_attn")),
            layer.norm("post_attention_layernorm", hidden, eps),
            mixture(layer.under("mlp"))
            if sparse[n]
            else layer.mlp("mlp", config.size("intermediate_size"), hidden),
            ffn_post_norm=None if post_norm is None else post_norm(sparse[n], layer),
        )

    return assemble(config, reader, hidden, eps, block)


def latent_attention(
    config: Config,
    *,
    rope_settings: RopeSettings | None = None,
    selection: MakeSelection | None = None,
    temperature: QueryTemperature | None = None,
    query_gain: float = 1.0,
    latent_gain: float = 1.0,
    rotates: bool = True,
    gate: str = "",
    o_name: str = "o_proj",
) -> MakeAttention:
    """DeepSeek-V2's and V3's attention (arXiv 2405.04434, section 2.1), q compressed or not.

    `rope_settings` are those of the configuration unless given. `selection` is what chooses the
    tokens that a layer's queries read. Queries and latents are multiplied by their gains
    (LongCat-Flash). Without `rotates` there is no position (Kimi-Linear). `gate` is the name of a
    layer that gives each head's output a gate, `o_name` what the file calls `o_proj` (Ling 3).
    """
    hidden = config.size("hidden_size")
    heads, _ = attention_heads(config)
    nope = config.size("qk_nope_head_dim")
    rope = config.size("qk_rope_head_dim", most=MAX_HEAD_DIM)
    value = config.size("v_head_dim")
    latent = config.size("kv_lora_rank")
    q_latent = config.optional_size("q_lora_rank")
    bias = config.flag("attention_bias", default=False)
    settings = read_rope(config) if rope_settings is None else rope_settings
    rotation: dict[str, Any] = {"frequencies": None}
    if rotates:
        config.require(rope % 2 == 0, "qk_rope_head_dim", "an even number")
        rotation = rope_options(settings, rope)
    interleaved = config.flag("rope_interleave", default=True)

    def attention(n: int, layer: Reader) -> MLA:
        q_a = q_norm = None
        if q_latent is None:
            q = layer.linear("q_proj", heads * (nope + rope), hidden)
        else:
            q_a = layer.linear("q_a_proj", q_latent, hidden, bias=bias)
            q_norm = layer.norm("q_a_layernorm", q_latent, LATENT_EPS)
            q = layer.linear("q_b_proj", heads * (nope + rope), q_latent)
        kv_a = layer.linear("kv_a_proj_with_mqa", latent + rope, hidden, bias=bias)
        kv_weight = layer.tensor("kv_a_layernorm.weight", latent)
        kv_norm = RMSNorm(kv_weight * np.float32(latent_gain), LATENT_EPS)
        chosen = None if selection is None else selection(n, layer)
        key_up, value_up = latent_projections(layer, heads, nope, value, latent)
        return MLA(
            q,
            kv_a,
            kv_norm,
            key_up,
            value_up,
            layer.linear(o_name, hidden, heads * value, bias=bias),
            gate=layer.linear(gate, heads, hidden) if gate else None,
            q_a=q_a,
            q_norm=q_norm,
            interleaved=interleaved,
            scale=(nope + rope) ** -0.5 * yarn_softmax_scale(settings) * query_gain,
            temperature=temperature,
            indexer=chosen if isinstance(chosen, Indexer) else None,
            shares_selection=chosen if isinstance(chosen, int) else None,
            **rotation,
        )

    return attention


def own_indexer(config: Config, interleaved: bool) -> Callable[[Reader], Indexer]:
    """The lightning indexer of a layer (DeepSeek-V3.2-Exp, section 2), under `indexer`."""
    hidden, q_latent = config.size("hidden_size"), config.size("q_lora_rank")
    heads = config.size("index_n_heads")
    dim = config.size("index_head_dim", most=MAX_HEAD_DIM)
    rope = config.size("qk_rope_head_dim")
    top_k = config.size("index_topk")
    config.require(rope <= dim, "qk_rope_head_dim", f"at most index_head_dim, {dim},")

    def indexer(layer: Reader) -> Indexer:
        return Indexer(
            layer.linear("indexer.wq_b", heads * dim, q_latent),
            layer.linear("indexer.wk", dim, hidden),
            layer.layer_norm("indexer.k_norm", dim, LATENT_EPS),
            layer.linear("indexer.weights_proj", heads, hidden),
            top_k=top_k,
            interleaved=interleaved,
        )

    return indexer


def latent_projections(
    layer: Reader, heads: int, nope: int, value: int, latent: int
) -> tuple[PackedWeight, PackedWeight]:
    """kv_b_proj [h * (N + V), L] head by head: W_uk transposed [h, L, N] and W_uv [h, V, L]."""
    if "k_b_proj.weight" in layer:  # GGUF keeps the two apart, by head
        keys, values = (heads, latent, nope), (heads, value, latent)
        ups = [layer.piece("k_b_proj.weight", keys, expert=head) for head in range(heads)]
        outs = [layer.piece("v_b_proj.weight", values, expert=head) for head in range(heads)]
    else:
        both = (heads * (nope + value), latent)
        first = range(0, both[0], nope + value)
        ups = [
            layer.piece("kv_b_proj.weight", both, rows=slice(n, n + nope), transposed=True)
            for n in first
        ]
        outs = [
            layer.piece("kv_b_proj.weight", both, rows=slice(n + nope, n + nope + value))
            for n in first
        ]
    format = layer.formats.attention
    # A head's keys may lie across scales of the file; each head keeps what it can.
    key_up = PackedWeight.empty(format or layer.kept_formats(ups), (heads, latent, nope))
    value_up = PackedWeight.empty(format or layer.kept_formats(outs), (heads, value, latent))
    for head in range(heads):
        layer.fill(key_up, head, ups[head])
        layer.fill(value_up, head, outs[head])
    return key_up, value_up


def grouped_mixture(
    config: Config,
    *,
    score: str = "sigmoid",
    select_bias: str = "gate.e_score_correction_bias",
    group_score: str = "top2",
    group_fill: str = "-inf",
    normalize: bool | None = None,
    groups: tuple[int, int] | None = None,
    **fields: Any,
) -> MakeMixture:
    """Routed experts chosen by groups, and `n_shared_experts` that every token goes to.

    `groups` are n_group and topk_group unless given; `normalize` is norm_topk_prob. `select_bias`
    is the name of DeepSeek-V3's bias, which enters the selection alone; "" where there is none.
    `fields` replace those of `Mixture`.
    """
    experts = config.size("n_routed_experts", "num_local_experts", "num_experts")
    k = top_k(config, experts)
    inner = config.size("moe_intermediate_size")
    if normalize is None:
        normalize = config.flag("norm_topk_prob", default=True)
    rule = {
        "score": score,
        "group_score": group_score,
        "group_fill": group_fill,
        "normalize": normalize,
        "scale": config.number("routed_scaling_factor", default=1.0),
        **group_rule(config, experts, k, groups),
    }
    defaults = {
        "select_bias": select_bias,
        "shared": inner * config.size("n_shared_experts", default=1, least=0),
    }
    hidden = config.size("hidden_size")
    return Mixture(hidden, experts, k, inner, rule, **{**defaults, **fields}).read
