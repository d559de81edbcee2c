"""LFM2-MoE (LiquidAI, 2025): short gated convolutions, with an attention layer here and there.

Router: sigmoid scores, a bias that enters the selection alone, the weights renormalised. The first
`num_dense_layers` layers are dense.
"""

from collections.abc import Callable

from ..config import Config
from ..nn import MLP, Block, GatedConvolution, Model, MoE, ShortConvolution
from .base import Names, assemble, layer_count, mixer_types
from .grouped import GroupedQuery
from .jamba import MAX_TAPS
from .mixture import Mixture
from .reader import Reader
from .rope import read_rope

CONV, FULL = "conv", "full_attention"
_NAMES = Names(norm="model.embedding_norm")
_PARTS = ("w1", "w3", "w2")


def build(config: Config, reader: Reader) -> Model:
    """The model of an LFM2-MoE checkpoint."""
    hidden = config.size("hidden_size")
    eps = config.number("norm_eps", default=1e-5, above=0)
    layers = layer_count(config)
    kinds = mixer_types(config, layers, (CONV, FULL))
    dense = config.size("num_dense_layers", default=2, least=0)
    attention = GroupedQuery(
        config,
        eps,
        norms=("q_layernorm", "k_layernorm"),
        rope=read_rope(config, default_theta=1e6),
        o_name="out_proj",
    )
    biased = config.flag("use_expert_bias", default=True)
    mixture = Mixture.of(
        config,
        "moe_intermediate_size",
        {
            "score": "sigmoid",
            "normalize": config.flag("norm_topk_prob", default=True),
            "normalize_eps": 1e-6,
            "scale": config.number("routed_scaling_factor", default=1.0),
        },
        select_bias="expert_bias" if biased else "",
        parts=_PARTS,
    )
    conv = _convolution(config, hidden)

    def feed_forward(n: int, layer: Reader) -> MoE | MLP:
        if n >= dense:
            return mixture.read(layer.under("feed_forward"))
        return layer.mlp("feed_forward", config.size("intermediate_size"), hidden, parts=_PARTS)

    def block(n: int, layer: Reader) -> Block:
        return Block(
            layer.norm("operator_norm", hidden, eps),
            attention.read(layer.under("self_attn"))
            if kinds[n] == FULL
            else conv(layer.under("conv")),
            layer.norm("ffn_norm", hidden, eps),
            feed_forward(n, layer),
        )

    tied = config.flag("tie_embedding", default=True)
    return assemble(config, reader, hidden, eps, block, tied=tied, names=_NAMES)


def _convolution(config: Config, hidden: int) -> Callable[[Reader], GatedConvolution]:
    taps = config.size("conv_L_cache", default=3, most=MAX_TAPS)
    bias = config.flag("conv_bias", default=False)

    def convolution(layer: Reader) -> GatedConvolution:
        weight = layer.tensor_of("conv.weight", (hidden, taps), (hidden, 1, taps))
        values = layer.tensor("conv.bias", hidden) if bias else None
        return GatedConvolution(
            layer.linear("in_proj", 3 * hidden, hidden, bias=bias),
            ShortConvolution(weight, values, "identity"),
            layer.linear("out_proj", hidden, hidden, bias=bias),
        )

    return convolution
