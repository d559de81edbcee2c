"""DeepSeek-V3.2: DeepSeek-V3 whose queries read the tokens that a small indexer selects for them.

DeepSeek-V3.2-Exp (2025). Router, experts and latent attention are those of V3. The indexer rotates
the first dimensions of its heads in halves, where the attention rotates pairs.
"""

from ..config import Config
from ..nn import Model
from .latent import grouped_mixture, latent_attention, latent_decoder, own_indexer
from .reader import Reader

# What a file may leave out, as transformers fills it in.
_DEFAULTS = {
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "routed_scaling_factor": 2.5,
    "index_topk": 2048,
    "index_head_dim": 128,
    "index_n_heads": 64,
}


def build(config: Config, reader: Reader) -> Model:
    """The model of a DeepSeek-V3.2 checkpoint."""
    config = config.with_defaults(**_DEFAULTS)
    config.choice("scoring_func", ["sigmoid"], default="sigmoid")
    config.choice("topk_method", ["noaux_tc"], default="noaux_tc")
    indexer = own_indexer(config, interleaved=False)
    attention = latent_attention(config, selection=lambda _, layer: indexer(layer))
    return latent_decoder(config, reader, attention, grouped_mixture(config), first_dense=3)
