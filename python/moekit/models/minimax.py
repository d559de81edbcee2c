"""MiniMax-01 (arXiv 2501.08313): lightning attention, and softmax attention in some layers.

What is added to is the normed stream, and both summands have factors. Router: softmax over all
experts, the best k, renormalised.
"""

import numpy as np

from ..config import Config
from ..nn import LightningAttention, Model, NormedStreamBlock
from ..nn.types import Floats
from .base import assemble, layer_count, mixer_types, require_silu
from .grouped import GroupedQuery
from .mixture import Mixture
from .reader import Reader
from .rope import read_rope

LINEAR, FULL = "linear_attention", "full_attention"
# Tables that transformers writes; they follow from the configuration.
_DERIVED = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
# The norm of lightning attention does not follow rms_norm_eps.
_LIGHTNING_EPS = 1e-6


def build(config: Config, reader: Reader) -> Model:
    """The model of a MiniMax-01 checkpoint."""
    hidden = config.size("hidden_size")
    eps = config.number("rms_norm_eps", default=1e-5, above=0)
    layers = layer_count(config)
    default = [LINEAR if n % 2 else FULL for n in range(layers)]
    kinds = mixer_types(config, layers, (LINEAR, FULL), default)
    require_silu(config)
    rope = read_rope(config, default_theta=1e6, default_partial=1.0)
    attention = GroupedQuery(config, eps, rope=rope)
    mixture = Mixture.of(
        config,
        "intermediate_size",
        {"score": "softmax", "normalize": True},
        parts=("w1", "w3", "w2"),
    )
    width = attention.heads * attention.head_dim
    window = config.optional_size("sliding_window")

    def lightning(n: int, layer: Reader) -> LightningAttention:
        for name in _DERIVED:
            layer.ignore(name)
        return LightningAttention(
            layer.linear("qkv_proj", 3 * width, hidden),
            layer.linear("output_gate", width, hidden),
            layer.linear("out_proj", hidden, width),
            decay=_decay(n, layers, attention.heads),
            norm=layer.tensor("norm.weight", width),
            eps=_LIGHTNING_EPS,
        )

    def block(n: int, layer: Reader) -> NormedStreamBlock:
        mixer = layer.under("self_attn")
        kind = "full_attn" if kinds[n] == FULL else "linear_attn"
        return NormedStreamBlock(
            layer.norm("input_layernorm", hidden, eps),
            attention.read(mixer, window=window) if kinds[n] == FULL else lightning(n, mixer),
            layer.norm("post_attention_layernorm", hidden, eps),
            mixture.read(layer.under("block_sparse_moe")),
            attention_factors=_factors(config, kind),
            ffn_factors=_factors(config, "mlp"),
        )

    return assemble(config, reader, hidden, eps, block)


def _factors(config: Config, part: str) -> tuple[float, float]:
    """(alpha, beta): what the stream and what a part gives are multiplied by."""
    alpha = config.number(f"{part}_alpha_factor", default=1.0)
    return alpha, config.number(f"{part}_beta_factor", default=1.0)


def _decay(n: int, layers: int, heads: int) -> Floats:
    """e^-slope for each head of layer n: ALiBi's slopes, smaller in later layers (section 2.2)."""
    slopes = 2.0 ** (-8.0 / heads * np.arange(1, heads + 1))
    decay: Floats = np.exp(-slopes * (1 - n / (layers - 1 + 1e-5) + 1e-5)).astype(np.float32)
    return decay
