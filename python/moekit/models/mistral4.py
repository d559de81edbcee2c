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


def build(config: Config, reader: Reader) -> Model:
    """The model of a Mistral Small 4 checkpoint."""
    # The part that rotates is given of the whole head; here it has a size of its own.
    rope = replace(read_rope(config), partial=1.0)
    temperature = None
    if rope.source.get("llama_4_scaling_beta") is not None:
        temperature = QueryTemperature(
            rope.source.number("llama_4_scaling_beta"),
            rope.source.size("original_max_position_embeddings"),
        )
    attention = latent_attention(config, rope_settings=rope, temperature=temperature)
    mixture = grouped_mixture(config, score="softmax", select_bias="", group_fill="0")
    return latent_decoder(config, reader, attention, mixture, first_dense=0)
