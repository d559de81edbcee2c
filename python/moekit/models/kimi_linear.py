"""Kimi Linear (arXiv 2510.26692): three layers of Kimi Delta Attention for each one of MLA.

The delta rule forgets by key channel; latent attention has no positions. Experts and router are
DeepSeek-V3's.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from ..config import Config
from ..nn import MLP, Block, DeltaNet, DeltaSizes, Model, MoE, SeparateInputs, ShortConvolution
from .base import assemble, layer_count, mixer_types, require_silu, sparse_layers
from .jamba import MAX_TAPS, decay_rate
from .latent import grouped_mixture, latent_attention
from .reader import Reader

LINEAR, FULL = "linear_attention", "full_attention"
ReadInputs: TypeAlias = Callable[[Reader, int, DeltaSizes], SeparateInputs]
# Moonshot's names of DeepSeek's fields.
_RENAMED = {
    "moe_renormalize": "norm_topk_prob",
    "num_expert_group": "n_group",
    "num_experts_per_token": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts",
}


def build(config: Config, reader: Reader) -> Model:
    """The model of a Kimi Linear checkpoint."""
    config = standard_fields(config).with_defaults(routed_scaling_factor=2.446)
    hidden = config.size("hidden_size")
    eps = config.number("rms_norm_eps", default=1e-5, above=0)
    layers = layer_count(config)
    kinds = _kinds(config, layers)
    dense = config.size("first_k_dense_replace", default=1, least=0)
    sparse = sparse_layers(config, layers, 1, list(range(min(dense, layers))))
    require_silu(config)
    full = latent_attention(config, rotates=False)
    section = config.section("linear_attn_config")
    linear = delta_attention(
        hidden,
        heads=_named(section, config).size("num_heads", "linear_num_heads", default=32),
        width=_named(section, config).size("head_dim", "linear_head_dim", default=128),
        taps=_named(section, config).size(
            "short_conv_kernel_size", "linear_conv_kernel_dim", default=4, most=MAX_TAPS
        ),
        eps=eps,
        inputs=_inputs,
    )
    mixture = grouped_mixture(config, parts=("w1", "w3", "w2"))

    def feed_forward(n: int, layer: Reader) -> MoE | MLP:
        if sparse[n]:
            return mixture(layer.under("block_sparse_moe"))
        # Transformers writes dense layers under the name of the mixture, Moonshot as `mlp`.
        name = "mlp" if layer.has_any("mlp.") else "block_sparse_moe"
        return layer.mlp(name, config.size("intermediate_size"), hidden)

    def block(n: int, layer: Reader) -> Block:
        mixer = layer.under("self_attn")
        return Block(
            layer.norm("input_layernorm", hidden, eps),
            full(n, mixer) if kinds[n] == FULL else linear(mixer),
            layer.norm("post_attention_layernorm", hidden, eps),
            feed_forward(n, layer),
        )

    return assemble(config, reader, hidden, eps, block)


def standard_fields(config: Config) -> Config:
    """The configuration under DeepSeek's names; transformers never ties the head of these."""
    fields: Mapping[str, object] = config.fields
    renamed = {new: fields[old] for old, new in _RENAMED.items() if fields.get(old) is not None}
    return Config({**renamed, **fields, "tie_word_embeddings": False}, config.path)


def _named(section: Config, config: Config) -> Config:
    """The section of Moonshot's files, or the fields that transformers writes beside the others."""
    return (
        section
        if section.fields
        else Config(
            {name: value for name, value in config.fields.items() if name.startswith("linear_")},
            config.path,
        )
    )


def _kinds(config: Config, layers: int) -> list[str]:
    """`layer_types`, or Moonshot's two lists of layers, which count from 1."""
    section = config.section("linear_attn_config")
    default = [FULL if n and n % 4 == 0 else LINEAR for n in range(layers)]
    if section.get("full_attn_layers") is not None and section.get("kda_layers") is not None:
        full = set(section.sizes("full_attn_layers", least=1))
        linear = set(section.sizes("kda_layers", least=1))
        # Layers for multi-token prediction may be listed as well.
        every = set(range(1, layers + 1))
        section.require(
            not full & linear and every <= full | linear,
            "full_attn_layers",
            f"a list that names each of {layers} layers which kda_layers does not",
        )
        default = [FULL if n + 1 in full else LINEAR for n in range(layers)]
    return mixer_types(config, layers, (LINEAR, FULL), default)


def _inputs(layer: Reader, hidden: int, sizes: DeltaSizes) -> SeparateInputs:
    width = sizes.key_dim
    return SeparateInputs(
        [layer.linear(f"{part}_proj", sizes.values, hidden) for part in "qkv"],
        [
            layer.linear("g_a_proj", width, hidden),
            layer.linear("g_b_proj", sizes.values, width),
        ],
        layer.linear("b_proj", sizes.heads, hidden),
        [
            layer.linear("f_a_proj", width, hidden),
            layer.linear("f_b_proj", sizes.values, width),
        ],
    )


def delta_attention(
    hidden: int,
    *,
    heads: int,
    width: int,
    taps: int,
    eps: float,
    inputs: ReadInputs,
    o_name: str = "o_proj",
    lower_bound: float | None = None,
) -> Callable[[Reader], DeltaNet]:
    """Reads Kimi Delta Attention: heads of equal width for q, k and v, a decay a key channel."""
    sizes = DeltaSizes(heads, heads, width, width)

    def mixer(layer: Reader) -> DeltaNet:
        channels = sizes.values
        if "conv1d.weight" in layer:  # as transformers has it in memory
            both = (3 * channels, taps), (3 * channels, 1, taps)
            convs = [layer.tensor_of("conv1d.weight", *both)]
        else:
            shapes = (channels, taps), (channels, 1, taps), (1, channels, 1, taps)
            convs = [layer.tensor_of(f"{part}_conv1d.weight", *shapes) for part in "qkv"]
        return DeltaNet(
            inputs(layer, hidden, sizes),
            ShortConvolution(np.concatenate(convs)),
            layer.linear(o_name, hidden, sizes.values),
            sizes,
            rate=np.repeat(decay_rate(layer, heads), width),
            bias=layer.tensor("dt_bias", sizes.values),
            norm=layer.tensor("o_norm.weight", width),
            eps=eps,
            activation="sigmoid",
            lower_bound=lower_bound,
        )

    return mixer
