"""Phi-3.5-MoE (arXiv 2404.14219): LayerNorm, biases throughout, LongRoPE, and SparseMixer.

Router (arXiv 2409.12136): the best expert, weighed by a softmax over the logits that come within
`router_jitter_noise` of it; then once more without it. The weights do not sum to 1.

LongRoPE as transformers has it: the short factors at every length; in sequences longer than
the original context cos and sin are multiplied by `long_mscale` instead of `short_mscale`. A
generation that grows past that length reads its sequence anew; a cache that the caller continues
keeps its keys.
"""

from typing import Any

from ..config import Config
from ..nn import LongContext, Model, Norm
from .grouped import GroupedQuery, decoder
from .mixture import Mixture
from .reader import Reader
from .rope import RopeSettings, read_rope


def build(config: Config, reader: Reader) -> Model:
    """The model of a Phi-3.5-MoE checkpoint."""
    hidden = config.size("hidden_size")
    eps = config.number("rms_norm_eps", default=1e-5, above=0)
    attention = GroupedQuery(
        config,
        eps,
        bias=config.flag("attention_bias", default=False),
        rope=False,
        window=config.optional_size("sliding_window"),
    )
    attention.options.update(_rotation(attention, read_rope(config, default_theta=1e6)))
    # Transformers' rule has two steps, whatever the number of experts per token says.
    config.require(config.size("num_experts_per_tok", default=2) == 2, "num_experts_per_tok", "2")
    mixture = Mixture.of(
        config,
        "intermediate_size",
        {
            "score": "sparsemixer",
            "jitter_eps": config.number("router_jitter_noise", default=0.01, least=0),
        },
        parts=("w1", "w3", "w2"),
    )

    def norm(layer: Reader, name: str) -> Norm:
        return layer.layer_norm(name, hidden, eps)

    return decoder(
        config,
        reader,
        lambda n, layer: attention.read(layer),
        lambda n, layer: mixture.read(layer.under("block_sparse_moe")),
        eps=eps,
        norm=norm,
        head_bias=config.flag("lm_head_bias", default=False),
    )


def _rotation(attention: GroupedQuery, settings: RopeSettings) -> dict[str, Any]:
    options = attention.rotation(settings)
    if settings.kind == "default":
        return options
    original = settings.source.size(
        "original_max_position_embeddings",
        default=settings.scaling.get("original_max_position_embeddings"),
    )
    options["rope_factor"] = settings.source.number("short_mscale")
    # An array of its own: a pass keeps its angles by the table that they are made from.
    frequencies = options["frequencies"].copy()
    factor = settings.source.number("long_mscale")
    options["long"] = LongContext(frequencies, factor, original, anew=True)
    return options
