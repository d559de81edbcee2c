"""K-EXAONE (LG AI Research): DeepSeek-V3's router; windowed layers rotate, full ones do not."""

from ..config import Config
from ..nn import Attention, Model
from .base import layer_count, sparse_layers, top_k
from .grouped import GroupedQuery, decoder, feed_forwards, layer_windows
from .mixture import Mixture, group_rule
from .reader import Reader


def build(config: Config, reader: Reader) -> Model:
    """The model of an EXAONE-MoE checkpoint."""
    hidden = config.size("hidden_size")
    layers = layer_count(config)
    eps = config.number("rms_norm_eps", default=1e-5, above=0)
    dense = config.size("first_k_dense_replace", default=1, least=0)
    sparse = sparse_layers(config, layers, 1, list(range(min(dense, layers))))
    if "sliding_window" not in config:  # null is none
        config = config.with_defaults(sliding_window=4096)
    windows = _windows(config, layers)
    attention = GroupedQuery(config, eps, norms=("q_norm", "k_norm"))
    experts = config.size("num_experts")
    k = top_k(config, experts)
    inner = config.size("moe_intermediate_size")
    mixture = Mixture(
        hidden,
        experts,
        k,
        inner,
        {
            "score": "sigmoid",
            "group_score": "top2",
            "normalize": config.flag("norm_topk_prob", default=True),
            "scale": config.number("routed_scaling_factor", default=2.5),
            **group_rule(config, experts, k),
        },
        select_bias="e_score_correction_bias",
        shared=inner * config.size("num_shared_experts", default=1, least=0),
    )

    def attend(n: int, layer: Reader) -> Attention:
        if windows is None or windows[n] is not None:
            return attention.read(layer, window=windows and windows[n])
        return attention.read(layer, frequencies=None)

    # Multi-token prediction is not run.
    return decoder(
        config,
        reader,
        attend,
        feed_forwards(config, sparse, mixture.read),
        eps=eps,
        ignored=("mtp",),
    )


def _windows(config: Config, layers: int) -> list[int | None] | None:
    """The window of each layer; None if no layer has one, and then all of them rotate."""
    if config.get("sliding_window") is None:
        return None
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        # The last layer is always global.
        return layer_windows(
            config, layers, lambda n: pattern[n % len(pattern)] == "L" and n < layers - 1
        )
    step = config.size("sliding_window_pattern", default=4)
    return layer_windows(config, layers, lambda n: (n + 1) % step != 0)
