"""Mistral Small 4: latent attention with a temperature, softmax scores chosen by groups.

Router: softmax over all experts; of `n_group` groups the `topk_group` with the largest sum of their
two best experts are kept; the weights are renormalised. Every query is scaled by its position.
"""

from dataclasses import replace

from ..config import Config
from ..nn import Model, QueryTemperature
from .latent import grouped_mixture, latent_attention, latent_decoder
from .reader import Reader
from .rope import read_rope

# What a file may leave out, as transformers fills it in.
_DEFAULTS = {"num_experts_per_tok": 4}
_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 128.0,
    "original_max_position_embeddings": 8192,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def build(config: Config, reader: Reader) -> Model:
    """The model of a Mistral Small 4 checkpoint."""
    config = config.with_defaults(**_DEFAULTS)
    if not config.get("rope_scaling"):
        config = config.with_defaults(rope_parameters=_ROPE)
    # The part that rotates is given of the whole head; here it has a size of its own.
    rope = replace(read_rope(config, default_partial=1.0), partial=1.0)
    temperature = None
    if rope.source.get("llama_4_scaling_beta") is not None:
        temperature = QueryTemperature(
            rope.source.number("llama_4_scaling_beta"),
            rope.source.size("original_max_position_embeddings"),
        )
    attention = latent_attention(config, rope_settings=rope, temperature=temperature)
    mixture = grouped_mixture(config, score="softmax", select_bias="", group_fill="0")
    return latent_decoder(config, reader, attention, mixture, first_dense=0)
