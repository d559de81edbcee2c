"""Qwen3-MoE (arXiv 2505.09388): many small experts, none shared; q and k normalised by head.

Router: softmax over all experts, the best k, renormalised where norm_topk_prob says so.
"""

from ..config import Config
from ..nn import Model
from .base import layer_count, sparse_layers
from .grouped import GroupedQuery, decoder, feed_forwards
from .mixture import Mixture
from .reader import Reader


def build(config: Config, reader: Reader) -> Model:
    """The model of a Qwen3-MoE checkpoint."""
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    windowed = config.flag("use_sliding_window", default=False)
    attention = GroupedQuery(
        config,
        eps,
        bias=config.flag("attention_bias", default=False),
        norms=("q_norm", "k_norm"),
        window=config.optional_size("sliding_window") if windowed else None,
    )
    sparse = sparse_layers(
        config,
        layer_count(config),
        config.size("decoder_sparse_step", default=1),
        config.sizes("mlp_only_layers"),
    )
    mixture = Mixture.of(
        config,
        "moe_intermediate_size",
        {"score": "softmax", "normalize": config.flag("norm_topk_prob", default=False)},
    )

    return decoder(
        config,
        reader,
        lambda n, layer: attention.read(layer),
        feed_forwards(config, sparse, mixture.read),
        eps=eps,
    )
