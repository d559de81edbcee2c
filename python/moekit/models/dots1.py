"""dots.llm1 (arXiv 2506.05767): DeepSeek-V3's router; q and k normalised by head."""

from ..config import Config
from ..nn import Model
from .base import layer_count, sparse_layers
from .grouped import GroupedQuery, decoder, feed_forwards, layer_windows
from .latent import grouped_mixture
from .reader import Reader


def build(config: Config, reader: Reader) -> Model:
    """The model of a dots.llm1 checkpoint."""
    layers = layer_count(config)
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    dense = config.size("first_k_dense_replace", default=0, least=0)
    sparse = sparse_layers(config, layers, 1, list(range(min(dense, layers))))
    # Transformers' rule for files that do not list their layers.
    first_window = config.size("max_window_layers", default=62, least=0)
    windowed = config.get("sliding_window") is not None
    windows = layer_windows(config, layers, lambda n: windowed and n >= first_window)
    attention = GroupedQuery(
        config,
        eps,
        bias=config.flag("attention_bias", default=False),
        norms=("q_norm", "k_norm"),
    )
    mixture = grouped_mixture(config, normalize=config.flag("norm_topk_prob", default=False))

    return decoder(
        config,
        reader,
        lambda n, layer: attention.read(layer, window=windows[n]),
        feed_forwards(config, sparse, mixture),
        eps=eps,
    )
