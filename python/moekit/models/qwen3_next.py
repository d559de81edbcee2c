"""Qwen3-Next (2025): three layers of Gated DeltaNet for each one of gated attention.

Norms are stored minus one, except for that of DeltaNet's output. Attention's q_proj gives each
head's queries and behind them its gates; a quarter of a head rotates. Router: softmax over all
experts, the best k, renormalised; beside them a shared expert with a sigmoid gate.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from ..config import Config
from ..nn import (
    MLP,
    Attention,
    Block,
    DeltaNet,
    DeltaSizes,
    GroupedInputs,
    Linear,
    Model,
    MoE,
    RMSNorm,
    SeparateInputs,
)
from ..nn.delta_net import DeltaInputs
from .base import (
    assemble,
    attention_heads,
    head_size,
    layer_count,
    mixer_types,
    require_silu,
    rope_options,
    sparse_layers,
)
from .jamba import MAX_TAPS, decay_rate, short_convolution
from .mixture import Mixture
from .reader import Reader
from .rope import read_rope

LINEAR, FULL = "linear_attention", "full_attention"
# (reader of the mixer, hidden size, sizes) -> how q, k, v, gates, beta and decay are made.
ReadInputs: TypeAlias = Callable[[Reader, int, DeltaSizes], DeltaInputs]


def build(config: Config, reader: Reader) -> Model:
    """The model of a Qwen3-Next checkpoint."""
    normalize = config.flag("norm_topk_prob", default=True)
    return hybrid(config, reader, _grouped_inputs, normalize)


def _grouped_inputs(layer: Reader, hidden: int, sizes: DeltaSizes) -> DeltaInputs:
    if "in_proj_qkv.weight" in layer:
        return _inputs_of_gguf(layer, hidden, sizes)
    wide = 2 * (sizes.keys + sizes.values)
    return GroupedInputs(
        layer.linear("in_proj_qkvz", wide, hidden),
        layer.linear("in_proj_ba", 2 * sizes.heads, hidden),
        sizes,
    )


def _inputs_of_gguf(layer: Reader, hidden: int, sizes: DeltaSizes) -> DeltaInputs:
    """llama.cpp's converter takes in_proj_qkvz apart, and leaves in_proj_ba as it is."""
    both = layer.tensor("in_proj_ba.weight", 2 * sizes.heads, hidden)
    beta, decay = both.reshape(sizes.key_heads, 2, -1, hidden).swapaxes(0, 1)
    return SeparateInputs(
        [layer.linear("in_proj_qkv", 2 * sizes.keys + sizes.values, hidden)],
        [layer.linear("in_proj_z", sizes.values, hidden)],
        Linear(beta.reshape(-1, hidden), kind="attention"),
        [Linear(decay.reshape(-1, hidden), kind="attention")],
    )


def hybrid(
    config: Config, reader: Reader, inputs: ReadInputs, normalize: bool, **options: Any
) -> Model:
    """What Qwen3-Next and Qwen3.5 share; `inputs` reads DeltaNet's projections.

    Options are those of `assemble`.
    """
    hidden = config.size("hidden_size")
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    layers = layer_count(config)
    period = config.size("full_attention_interval", default=4)
    default = [LINEAR if (n + 1) % period else FULL for n in range(layers)]
    kinds = mixer_types(config, layers, (LINEAR, FULL), default)
    step = config.size("decoder_sparse_step", default=1)
    sparse = sparse_layers(config, layers, step, config.sizes("mlp_only_layers"))
    require_silu(config)
    # GGUF's norms have the one in them.
    offset = 0.0 if config.flag("norms_hold_one", default=False) else 1.0
    full = _gated_attention(config, hidden, eps, offset)
    linear = _delta_net(config, hidden, eps, inputs)
    mixture = Mixture.of(
        config,
        "moe_intermediate_size",
        {"score": "softmax", "normalize": normalize},
        shared=config.size("shared_expert_intermediate_size", least=0),
        shared_name="shared_expert",
    )

    def feed_forward(n: int, layer: Reader) -> MoE | MLP:
        if not sparse[n]:
            return layer.mlp("mlp", config.size("intermediate_size"), hidden)
        ffn = layer.under("mlp")
        if not mixture.shared:
            ffn.ignore("shared_expert_gate.weight")
            return mixture.read(ffn)
        gate = ffn.packed("shared_expert_gate.weight", 1, hidden, ffn.formats.router)
        return mixture.read(ffn, shared_gate=Linear(gate, kind="router"))

    def norm(layer: Reader, name: str) -> RMSNorm:
        return layer.norm(name, hidden, eps, offset)

    def block(n: int, layer: Reader) -> Block:
        return Block(
            norm(layer, "input_layernorm"),
            full(layer.under("self_attn"))
            if kinds[n] == FULL
            else linear(layer.under("linear_attn")),
            norm(layer, "post_attention_layernorm"),
            feed_forward(n, layer),
        )

    # Layers for multi-token prediction are not run.
    ignored = ("mtp.", *options.pop("ignored", ()))
    return assemble(config, reader, hidden, eps, block, norm=norm, ignored=ignored, **options)


def _gated_attention(
    config: Config, hidden: int, eps: float, offset: float
) -> Callable[[Reader], Attention]:
    heads, kv_heads = attention_heads(config)
    size = head_size(config, hidden, heads)
    bias = config.flag("attention_bias", default=False)
    rotation = rope_options(read_rope(config, default_partial=0.25), size)

    def attention(layer: Reader) -> Attention:
        linear = partial(layer.linear, bias=bias)
        return Attention(
            linear("q_proj", 2 * heads * size, hidden),
            linear("k_proj", kv_heads * size, hidden),
            linear("v_proj", kv_heads * size, hidden),
            linear("o_proj", hidden, heads * size),
            heads=heads,
            kv_heads=kv_heads,
            q_norm=layer.norm("q_norm", size, eps, offset),
            k_norm=layer.norm("k_norm", size, eps, offset),
            gated_queries=True,
            **rotation,
        )

    return attention


def _delta_net(
    config: Config, hidden: int, eps: float, inputs: ReadInputs
) -> Callable[[Reader], DeltaNet]:
    sizes = DeltaSizes(
        key_heads=config.size("linear_num_key_heads", default=16),
        heads=config.size("linear_num_value_heads", default=32),
        key_dim=config.size("linear_key_head_dim", default=128),
        value_dim=config.size("linear_value_head_dim", default=128),
        tiled=config.flag("linear_heads_tiled", default=False),
    )
    taps = config.size("linear_conv_kernel_dim", default=4, most=MAX_TAPS)
    config.require(
        sizes.heads % sizes.key_heads == 0,
        "linear_num_value_heads",
        f"a multiple of linear_num_key_heads, {sizes.key_heads},",
    )

    def mixer(layer: Reader) -> DeltaNet:
        channels = 2 * sizes.keys + sizes.values
        return DeltaNet(
            inputs(layer, hidden, sizes),
            short_convolution(layer, channels, taps, bias=False),
            layer.linear("out_proj", hidden, sizes.values),
            sizes,
            rate=decay_rate(layer, sizes.heads),
            bias=layer.tensor("dt_bias", sizes.heads),
            norm=layer.tensor("norm.weight", sizes.value_dim),
            eps=eps,
        )

    return mixer
