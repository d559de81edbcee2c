"""DeepSeek-V2 and V2-Lite (arXiv 2405.04434): latent attention, shared and routed experts.

Router: softmax over all experts, the best k as they are, times `routed_scaling_factor`. With
`group_limited_greedy` the k come from the `topk_group` groups that hold the best single experts.
V2-Lite does not compress its queries. `norm_topk_prob` is false in what is published, and no code
of transformers reads it.
"""

from ..config import Config
from ..nn import Model
from .latent import grouped_mixture, latent_attention, latent_decoder
from .reader import Reader


def build(config: Config, reader: Reader) -> Model:
    """The model of a DeepSeek-V2 checkpoint."""
    config = config.with_defaults(n_shared_experts=2)
    config.choice("scoring_func", ["softmax"], default="softmax")
    config.require(not config.flag("mlp_bias", default=False), "mlp_bias", "false")
    method = config.choice("topk_method", ["greedy", "group_limited_greedy"], default="greedy")
    mixture = grouped_mixture(
        config,
        score="softmax",
        select_bias="",
        group_score="max",
        group_fill="0",
        normalize=False,
        # A configuration may name groups that the greedy method does not use.
        groups=(1, 1) if method == "greedy" else None,
    )
    return latent_decoder(config, reader, latent_attention(config), mixture, first_dense=0)
