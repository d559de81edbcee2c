"""Granite 4 (2025): Granite's mixture over Mamba-2 layers and a few attention layers.

Positions are rotated where `position_embedding_type` is "rope", and unknown otherwise. Router and
factors are those of `granitemoe`; there may be no experts at all beside the shared one.
"""

from collections.abc import Callable

from ..config import Config
from ..nn import MLP, Block, Mamba2, Model, MoE
from .base import assemble, layer_count, mixer_types, require_silu
from .granitemoe import FUSED, granite_factors, granite_mixture
from .grouped import GroupedQuery
from .jamba import MAX_TAPS, decay_rate, short_convolution
from .reader import Reader

LINEAR, FULL = "linear_attention", "full_attention"


def build(config: Config, reader: Reader) -> Model:
    """The model of a Granite 4 hybrid checkpoint."""
    hidden = config.size("hidden_size")
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    layers = layer_count(config)
    kinds = mixer_types(
        config, layers, (LINEAR, FULL), [LINEAR] * layers, "layer_types", "layers_block_type"
    )
    require_silu(config)
    rotates = config.choice("position_embedding_type", ("rope", "nope"), default="nope") == "rope"
    attention = GroupedQuery(
        config,
        eps,
        bias=config.flag("attention_bias", default=False),
        rope=rotates,
        scale=config.number("attention_multiplier", default=1.0),
    )
    sparse = config.size("num_local_experts", default=8, least=0) > 0
    shared = config.size("shared_intermediate_size", default=1024, least=int(not sparse))
    mixture = granite_mixture(config, shared) if sparse else None
    mamba = _mamba(config, hidden, eps)
    factors = granite_factors(config)
    residual = factors.pop("residual")

    def feed_forward(layer: Reader) -> MoE | MLP:
        if mixture is not None:
            return mixture.read(layer)
        return layer.mlp("shared_mlp", shared, hidden, layout=FUSED)

    def block(n: int, layer: Reader) -> Block:
        return Block(
            layer.norm("input_layernorm", hidden, eps),
            attention.read(layer.under("self_attn"))
            if kinds[n] == FULL
            else mamba(layer.under("mamba")),
            layer.norm("post_attention_layernorm", hidden, eps),
            feed_forward(layer),
            residual=residual,
        )

    return assemble(config, reader, hidden, eps, block, **factors)


def _mamba(config: Config, hidden: int, eps: float) -> Callable[[Reader], Mamba2]:
    channels = config.size("mamba_expand", default=2, most=1024) * hidden
    heads = config.size("mamba_n_heads", default=128)
    config.require(channels % heads == 0, "mamba_n_heads", f"a divisor of {channels} channels")
    return mamba_2(
        config,
        hidden,
        channels,
        heads,
        groups=config.size("mamba_n_groups", default=1),
        states=config.size("mamba_d_state", default=256),
        taps=config.size("mamba_d_conv", default=4, most=MAX_TAPS),
        conv_bias=config.flag("mamba_conv_bias", default=True),
        bias=config.flag("mamba_proj_bias", default=False),
        eps=eps,
        step_limits=_step_limits(config),
    )


def _step_limits(config: Config) -> tuple[float, float]:
    """`time_step_limit`: two numbers, the second of which may be infinite."""
    given = config.get("time_step_limit")
    if given is None:
        return 0.0, float("inf")
    wanted = "two numbers, 0 <= low <= high,"
    if not isinstance(given, list) or len(given) != 2:
        raise config.error("time_step_limit", wanted)
    # JSON has no infinity; transformers writes an object for it, Python's own writer a word.
    low, high = (float("inf") if item == {"__float__": "Infinity"} else item for item in given)
    if type(low) not in (int, float) or type(high) not in (int, float) or not 0 <= low <= high:
        raise config.error("time_step_limit", wanted)
    return float(low), float(high)


def mamba_2(
    config: Config,
    hidden: int,
    channels: int,
    heads: int,
    *,
    groups: int,
    states: int,
    taps: int,
    conv_bias: bool,
    bias: bool,
    eps: float,
    step_limits: tuple[float, float],
) -> Callable[[Reader], Mamba2]:
    """Reads a Mamba-2 mixer: `in_proj`, `conv1d`, `A_log`, `D`, `dt_bias`, `norm`, `out_proj`."""
    name = "n_groups" if config.get("n_groups") is not None else "mamba_n_groups"
    config.require(heads % groups == 0, name, f"a divisor of the {heads} heads")
    joint = channels + 2 * groups * states

    def mamba(layer: Reader) -> Mamba2:
        return Mamba2(
            layer.linear("in_proj", channels + joint + heads, hidden, bias=bias),
            short_convolution(layer, joint, taps, conv_bias),
            layer.linear("out_proj", hidden, channels, bias=bias),
            groups=groups,
            states=states,
            rate=decay_rate(layer, heads),
            skip=layer.tensor_of("D", (heads,), (heads, 1)),
            step_bias=layer.tensor("dt_bias", heads),
            norm=layer.tensor_of("norm.weight", (channels,), (groups, channels // groups)),
            eps=eps,
            step_limits=step_limits,
        )

    return mamba
