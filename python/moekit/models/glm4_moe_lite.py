"""GLM-4.7-Flash: DeepSeek-V3's architecture with one dense layer.

The router is V3's (sigmoid, a bias for the selection, groups), attention is latent.
"""

from ..config import Config
from ..nn import Model
from .latent import grouped_mixture, latent_attention, latent_decoder
from .reader import Reader

# What a file may leave out, as transformers fills it in.
_DEFAULTS = {"num_experts_per_tok": 4, "routed_scaling_factor": 1.8}


def build(config: Config, reader: Reader) -> Model:
    """The model of a GLM-4.7-Flash checkpoint."""
    config = config.with_defaults(**_DEFAULTS)
    attention, mixture = latent_attention(config), grouped_mixture(config)
    return latent_decoder(config, reader, attention, mixture, first_dense=1, eps=1e-5)
