"""Mixtral (arXiv 2401.04088): every layer is a mixture of experts, grouped-query attention.

Router: softmax over all experts, the best k, renormalised, which is the softmax over the chosen.
"""

from ..config import Config
from ..nn import Attention, Block, Model, MoE
from .base import assemble, attention_heads, check_activation, head_size, rope_table, top_k
from .reader import Reader
from .rope import read_rope


def build(config: Config, reader: Reader) -> Model:
    """The model of a Mixtral checkpoint."""
    hidden = config.size("hidden_size")
    inner = config.size("intermediate_size")
    heads, kv_heads = attention_heads(config)
    head_dim = head_size(config, hidden, heads)
    experts = config.size("num_local_experts", "num_experts")
    k = top_k(config, experts)
    eps = config.number("rms_norm_eps", default=1e-5, above=0)
    window = config.optional_size("sliding_window")
    frequencies, factor = rope_table(read_rope(config, default_theta=1e6), head_dim)
    check_activation(config)

    def block(n: int, layer: Reader) -> Block:
        attention = Attention(
            layer.linear("self_attn.q_proj", heads * head_dim, hidden),
            layer.linear("self_attn.k_proj", kv_heads * head_dim, hidden),
            layer.linear("self_attn.v_proj", kv_heads * head_dim, hidden),
            layer.linear("self_attn.o_proj", hidden, heads * head_dim),
            heads=heads,
            kv_heads=kv_heads,
            frequencies=frequencies,
            rope_factor=factor,
            window=window,
        )
        # Transformers 5 calls the block `mlp` in memory; files have the older name.
        ffn = layer.under("mlp" if layer.has_any("mlp.") else "block_sparse_moe")
        names = ("w1", "w3", "w2")
        if "experts.0.gate_proj.weight" in ffn:
            names = ("gate_proj", "up_proj", "down_proj")
        moe = MoE(
            ffn.router("gate", experts, hidden, k, score="softmax", normalize=True),
            ffn.experts("experts", experts, inner, hidden, names),
        )
        return Block(
            layer.norm("input_layernorm", hidden, eps),
            attention,
            layer.norm("post_attention_layernorm", hidden, eps),
            moe,
        )

    return assemble(config, reader, hidden, eps, block)
