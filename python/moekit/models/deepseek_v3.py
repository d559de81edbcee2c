"""DeepSeek-V3 and R1 (arXiv 2412.19437), Kimi K2: latent attention, shared and routed experts.

Router: sigmoid scores; a bias learnt for balance enters the selection alone; of `n_group` groups
the `topk_group` with the largest sum of their two best experts are kept; the weights are the chosen
scores, renormalised, times `routed_scaling_factor`. The first layers are dense.
"""

from ..config import Config
from ..nn import Model
from .latent import grouped_mixture, latent_attention, latent_decoder
from .reader import Reader

# What a file may leave out, as transformers fills it in.
_DEFAULTS = {"n_group": 8, "topk_group": 4, "num_experts_per_tok": 8, "routed_scaling_factor": 2.5}


def build(config: Config, reader: Reader) -> Model:
    """The model of a DeepSeek-V3 checkpoint."""
    config = config.with_defaults(**_DEFAULTS)
    config.choice("scoring_func", ["sigmoid"], default="sigmoid")
    config.choice("topk_method", ["noaux_tc"], default="noaux_tc")
    mixture = grouped_mixture(config)
    return latent_decoder(config, reader, latent_attention(config), mixture, first_dense=3)
