"""Qwen3-MoE (arXiv 2505.09388): many small experts, none shared; q and k normalised by head.

Router: softmax over all experts, the best k, renormalised where norm_topk_prob says so.
"""

from ..config import Config
from ..nn import MLP, Attention, Block, Model, MoE
from .base import (
    assemble,
    attention_heads,
    check_activation,
    head_size,
    layer_count,
    rope_table,
    sparse_layers,
    top_k,
)
from .reader import Reader
from .rope import read_rope


def build(config: Config, reader: Reader) -> Model:
    """The model of a Qwen3-MoE checkpoint."""
    hidden = config.size("hidden_size")
    heads, kv_heads = attention_heads(config)
    head_dim = head_size(config, hidden, heads)
    experts = config.size("num_experts", "num_local_experts")
    k = top_k(config, experts)
    normalize = config.flag("norm_topk_prob", default=False)
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    bias = config.flag("attention_bias", default=False)
    windowed = config.flag("use_sliding_window", default=False)
    window = config.optional_size("sliding_window") if windowed else None
    frequencies, factor = rope_table(read_rope(config), head_dim)
    sparse = sparse_layers(
        config,
        layer_count(config),
        config.size("decoder_sparse_step", default=1),
        config.sizes("mlp_only_layers"),
    )
    check_activation(config)

    def attention(layer: Reader) -> Attention:
        return Attention(
            layer.linear("q_proj", heads * head_dim, hidden, bias=bias),
            layer.linear("k_proj", kv_heads * head_dim, hidden, bias=bias),
            layer.linear("v_proj", kv_heads * head_dim, hidden, bias=bias),
            layer.linear("o_proj", hidden, heads * head_dim, bias=bias),
            heads=heads,
            kv_heads=kv_heads,
            q_norm=layer.norm("q_norm", head_dim, eps),
            k_norm=layer.norm("k_norm", head_dim, eps),
            frequencies=frequencies,
            rope_factor=factor,
            window=window,
        )

    def feed_forward(n: int, layer: Reader) -> MoE | MLP:
        if not sparse[n]:
            return layer.mlp("mlp", config.size("intermediate_size"), hidden)
        inner = config.size("moe_intermediate_size")
        return MoE(
            layer.router("mlp.gate", experts, hidden, k, score="softmax", normalize=normalize),
            layer.experts("mlp.experts", experts, inner, hidden),
        )

    def block(n: int, layer: Reader) -> Block:
        return Block(
            layer.norm("input_layernorm", hidden, eps),
            attention(layer.under("self_attn")),
            layer.norm("post_attention_layernorm", hidden, eps),
            feed_forward(n, layer),
        )

    return assemble(config, reader, hidden, eps, block)
