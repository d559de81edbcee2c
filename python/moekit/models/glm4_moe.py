"""GLM-4.5 to 4.7 (arXiv 2508.06471): DeepSeek-V3's router over grouped-query attention.

Half of each head rotates; q and k are normalised by head in the larger models. The layers for
multi-token prediction that follow the model's are not run.
"""

from ..config import Config
from ..nn import Model
from .base import layer_count, sparse_layers
from .grouped import GroupedQuery, decoder, feed_forwards
from .latent import grouped_mixture
from .reader import Reader
from .rope import read_rope


def build(config: Config, reader: Reader) -> Model:
    """The model of a GLM-4-MoE checkpoint."""
    layers = layer_count(config)
    eps = config.number("rms_norm_eps", default=1e-5, above=0)
    dense = config.size("first_k_dense_replace", default=1, least=0)
    sparse = sparse_layers(config, layers, 1, list(range(min(dense, layers))))
    attention = GroupedQuery(
        config,
        eps,
        bias=config.flag("attention_bias", default=False),
        o_bias=False,
        norms=("q_norm", "k_norm") if config.flag("use_qk_norm", default=False) else None,
        rope=read_rope(config, default_partial=0.5),
    )
    mixture = grouped_mixture(config)

    return decoder(
        config,
        reader,
        lambda n, layer: attention.read(layer),
        feed_forwards(config, sparse, mixture),
        eps=eps,
    )
