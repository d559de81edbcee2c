"""Granite 3 MoE (arXiv 2408.13359, PowerMoE): Mixtral's layers with factors of their own.

Router: the best k logits, softmax over these. The embedding, the attention scores, what a half
adds to the stream, and the logits are scaled by numbers in config.json. `granitemoeshared` has an
ungated shared expert besides.
"""

from typing import Any

from ..config import Config
from ..nn import Model
from .expert_layouts import Layout
from .grouped import GroupedQuery, decoder
from .mixture import Mixture
from .reader import Reader

# Gate and up are one matrix, in experts and in the shared one.
FUSED = Layout(both="input_linear.weight", down="output_linear.weight")


def granite_mixture(config: Config, shared: int) -> Mixture:
    """Names are those below a whole layer, since the shared expert stands beside the block."""
    return Mixture.of(
        config,
        "intermediate_size",
        {"score": "softmax_topk"},
        gate="block_sparse_moe.router.layer",
        experts_name="block_sparse_moe",
        layout=FUSED,
        shared=shared,
        shared_name="shared_mlp",
        shared_layout=FUSED,
    )


def granite_factors(config: Config) -> dict[str, Any]:
    """The options of `decoder` that carry Granite's factors."""
    return {
        "residual": config.number("residual_multiplier", default=1.0),
        "embedding_scale": config.number("embedding_multiplier", default=1.0),
        "logit_scale": 1.0 / config.number("logits_scaling", default=1.0, above=0),
    }


def build(config: Config, reader: Reader) -> Model:
    """The model of a Granite MoE checkpoint, with a shared expert or without."""
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    attention = GroupedQuery(
        config,
        eps,
        bias=config.flag("attention_bias", default=False),
        scale=config.number("attention_multiplier", default=1.0),
    )
    shared = 0
    if config.get("model_type") == "granitemoeshared":
        shared = config.size("shared_intermediate_size", default=0, least=0)
    mixture = granite_mixture(config, shared)
    return decoder(
        config,
        reader,
        lambda n, layer: attention.read(layer),
        lambda n, layer: mixture.read(layer),
        eps=eps,
        **granite_factors(config),
    )
