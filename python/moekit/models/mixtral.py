"""Mixtral (arXiv 2401.04088): every layer is a mixture of experts, grouped-query attention.

Router: softmax over all experts, the best k, renormalised, which is the softmax over the chosen.
"""

from dataclasses import replace

from ..config import Config
from ..nn import Model, MoE
from .expert_layouts import PARTS
from .grouped import GroupedQuery, decoder
from .mixture import Mixture
from .reader import Reader
from .rope import read_rope


def build(config: Config, reader: Reader) -> Model:
    """The model of a Mixtral checkpoint."""
    eps = config.number("rms_norm_eps", default=1e-5, above=0)
    attention = GroupedQuery(
        config,
        eps,
        rope=read_rope(config, default_theta=1e6),
        window=config.optional_size("sliding_window"),
    )
    older = Mixture.of(
        config,
        "intermediate_size",
        {"score": "softmax", "normalize": True},
        parts=("w1", "w3", "w2"),
    )

    def feed_forward(n: int, layer: Reader) -> MoE:
        ffn = layer.under("block_sparse_moe")
        renamed = "experts.0.gate_proj.weight" in ffn
        return (replace(older, parts=PARTS) if renamed else older).read(ffn)

    return decoder(config, reader, lambda n, layer: attention.read(layer), feed_forward, eps=eps)
