"""Ling 3 (inclusionAI, 2026): Kimi Delta Attention, and every sixth layer MLA with a gate a head.

The decay is bounded where `kda_safe_gate` says so. Experts and router are DeepSeek-V3's.
"""

from ..config import Config
from ..nn import MLP, Block, DeltaSizes, Model, MoE, SeparateInputs
from .base import Names, assemble, layer_count, mixer_types, require_silu, sparse_layers
from .jamba import MAX_TAPS
from .kimi_linear import FULL, LINEAR, delta_attention, standard_fields
from .latent import grouped_mixture, latent_attention
from .reader import Reader
from .rope import read_rope


def build(config: Config, reader: Reader) -> Model:
    """The model of a Ling 3 checkpoint."""
    config = standard_fields(config)
    hidden = config.size("hidden_size")
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    layers = layer_count(config)
    period = config.size("layer_group_size", default=6)
    default = [LINEAR if (n + 1) % period else FULL for n in range(layers)]
    kinds = mixer_types(config, layers, (LINEAR, FULL), default)
    dense = config.size("first_k_dense_replace", default=2, least=0)
    sparse = sparse_layers(config, layers, 1, list(range(min(dense, layers))))
    require_silu(config)
    full = latent_attention(
        config,
        rope_settings=read_rope(config, default_theta=6e6),
        gate="g_proj",
        o_name="dense",
    )
    bounded = config.flag("kda_safe_gate", default=True)
    bound = config.number("kda_lower_bound", default=-5.0)
    config.require(bound < 0, "kda_lower_bound", "a number below 0")
    linear = delta_attention(
        hidden,
        heads=config.size("linear_num_heads", "num_attention_heads"),
        width=config.size("linear_head_dim", "head_dim", default=128),
        taps=config.size("short_conv_kernel_size", default=4, most=MAX_TAPS),
        eps=eps,
        inputs=_inputs,
        o_name="dense",
        lower_bound=bound if bounded else None,
    )
    scaled = config.with_defaults(routed_scaling_factor=2.5)
    mixture = grouped_mixture(scaled, select_bias="gate.expert_bias")

    def feed_forward(n: int, layer: Reader) -> MoE | MLP:
        if sparse[n]:
            return mixture(layer.under("mlp"))
        return layer.mlp("mlp", config.size("intermediate_size"), hidden)

    def block(n: int, layer: Reader) -> Block:
        mixer = layer.under("attention")
        return Block(
            layer.norm("input_layernorm", hidden, eps),
            full(n, mixer) if kinds[n] == FULL else linear(mixer),
            layer.norm("post_attention_layernorm", hidden, eps),
            feed_forward(n, layer),
        )

    names = Names(embedding="model.word_embeddings")
    return assemble(config, reader, hidden, eps, block, names=names)


def _inputs(layer: Reader, hidden: int, sizes: DeltaSizes) -> SeparateInputs:
    return SeparateInputs(
        [layer.linear(f"{part}_proj", sizes.values, hidden) for part in "qkv"],
        [layer.linear("g_proj", sizes.values, hidden)],
        layer.linear("b_proj", sizes.heads, hidden),
        [layer.linear("f_proj", sizes.values, hidden)],
    )
