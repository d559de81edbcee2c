"""DeepSeekMoE-16B (arXiv 2401.06066), model_type `deepseek`: fine-grained and shared experts.

Router: softmax over all experts, the best k as they are (renormalised where norm_topk_prob says
so). The shared experts are one feed-forward layer of their joint size. The first layers are dense;
attention is the common kind.
"""

from ..config import Config
from ..nn import MLP, Attention, Model, MoE
from .base import layer_count
from .grouped import GroupedQuery, decoder
from .latent import grouped_mixture
from .reader import Reader


def build(config: Config, reader: Reader) -> Model:
    """The model of a DeepSeekMoE checkpoint."""
    hidden = config.size("hidden_size")
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    first = config.size("first_k_dense_replace", default=0, least=0)
    every = config.size("moe_layer_freq", default=1)
    config.choice("scoring_func", ["softmax"], default="softmax")
    layer_count(config)
    attention = GroupedQuery(config, eps, bias=config.flag("attention_bias", default=False))
    mixture = grouped_mixture(
        config,
        score="softmax",
        select_bias="",
        normalize=config.flag("norm_topk_prob", default=False),
        groups=(1, 1),
    )

    def attend(_: int, layer: Reader) -> Attention:
        return attention.read(layer)

    def feed_forward(n: int, layer: Reader) -> MoE | MLP:
        if n >= first and n % every == 0:
            return mixture(layer.under("mlp"))
        return layer.mlp("mlp", config.size("intermediate_size"), hidden)

    return decoder(config, reader, attend, feed_forward, eps=eps)
