"""Jamba (arXiv 2403.19887): Mamba layers with an attention layer here and there, and no positions.

Every `expert_layer_period`-th layer has experts. Router: softmax over all experts, the best k, not
renormalised. Mamba's time step, B and C are normalised.
"""

from collections.abc import Callable

import numpy as np

from ..config import Config
from ..nn import MLP, Block, Mamba, Model, MoE, ShortConvolution
from ..nn.types import Floats
from .base import (
    Names,
    assemble,
    layer_count,
    mixer_types,
    require_silu,
    sparse_layers,
)
from .grouped import GroupedQuery
from .mixture import Mixture
from .reader import Reader

LINEAR, FULL = "linear_attention", "full_attention"
MAX_TAPS = 64
_NAMES = Names(norm="model.final_layernorm")


def build(config: Config, reader: Reader) -> Model:
    """The model of a Jamba checkpoint."""
    hidden = config.size("hidden_size")
    inner = config.size("intermediate_size")
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    layers = layer_count(config)
    attends = _schedule(config, "attn_layer", period=8, offset=4)
    routes = _schedule(config, "expert_layer", period=2, offset=1)
    # A list says the same directly, where the file is GGUF.
    default = [FULL if attends(n) else LINEAR for n in range(layers)]
    kinds = mixer_types(config, layers, (LINEAR, FULL), default, "layers_block_type")
    dense = [n for n in range(layers) if not routes(n)]
    sparse = sparse_layers(config, layers, 1, dense)
    several = config.size("num_experts", "num_local_experts", default=16) > 1
    require_silu(config)
    attention = GroupedQuery(config, eps, rope=False)
    mixture = Mixture.of(config, "intermediate_size", {"score": "softmax"}, gate="router")
    mamba = _mamba(config, hidden, eps)

    def feed_forward(n: int, layer: Reader) -> MoE | MLP:
        if several and sparse[n]:
            return mixture.read(layer.under("feed_forward"))
        return layer.mlp("feed_forward", inner, hidden)

    def block(n: int, layer: Reader) -> Block:
        return Block(
            layer.norm("input_layernorm", hidden, eps),
            attention.read(layer.under("self_attn"))
            if kinds[n] == FULL
            else mamba(layer.under("mamba")),
            layer.norm("pre_ff_layernorm", hidden, eps),
            feed_forward(n, layer),
        )

    return assemble(config, reader, hidden, eps, block, names=_NAMES)


def _schedule(config: Config, name: str, period: int, offset: int) -> Callable[[int], bool]:
    """Every `period`-th layer from `offset` on."""
    period = config.size(f"{name}_period", default=period)
    offset = config.size(f"{name}_offset", default=offset, least=0)
    config.require(offset < period, f"{name}_offset", f"less than {name}_period, {period},")
    return lambda n: n % period == offset


def _mamba(config: Config, hidden: int, eps: float) -> Callable[[Reader], Mamba]:
    channels = config.size("mamba_expand", default=2, most=1024) * hidden
    states = config.size("mamba_d_state", default=16)
    taps = config.size("mamba_d_conv", default=4, most=MAX_TAPS)
    if config.get("mamba_dt_rank", "auto") == "auto":
        rank = -(-hidden // 16)
    else:
        rank = config.size("mamba_dt_rank")
    conv_bias = config.flag("mamba_conv_bias", default=True)
    bias = config.flag("mamba_proj_bias", default=False)

    def mamba(layer: Reader) -> Mamba:
        return Mamba(
            layer.linear("in_proj", 2 * channels, hidden, bias=bias),
            short_convolution(layer, channels, taps, conv_bias),
            layer.linear("x_proj", rank + 2 * states, channels),
            layer.linear("dt_proj", channels, rank),
            layer.linear("out_proj", hidden, channels, bias=bias),
            step_bias=layer.tensor("dt_proj.bias", channels),
            rate=decay_rate(layer, channels, states).T,
            skip=layer.tensor("D", channels),
            step_norm=layer.norm("dt_layernorm", rank, eps),
            in_norm=layer.norm("b_layernorm", states, eps),
            out_norm=layer.norm("c_layernorm", states, eps),
        )

    return mamba


def short_convolution(layer: Reader, channels: int, taps: int, bias: bool) -> ShortConvolution:
    """`conv1d.weight` [C, 1, W] or [C, W] and, with `bias`, `conv1d.bias` [C], followed by SiLU."""
    values = layer.tensor("conv1d.bias", channels) if bias else None
    weight = layer.tensor_of("conv1d.weight", (channels, taps), (channels, 1, taps))
    return ShortConvolution(weight, values)


def decay_rate(layer: Reader, *shape: int) -> Floats:
    """How fast states fade: e^A_log, or what GGUF has instead, the negative of it or, of bounded
    decays, itself. Dimensions of 1 may be added."""
    others = (*shape, 1), (1, 1, *shape, 1)
    if "A" in layer:
        return np.abs(layer.tensor_of("A", shape, *others))
    rate: Floats = np.exp(layer.tensor_of("A_log", shape, *others))
    return rate
