"""Mellum (JetBrains): Qwen3-MoE's layers, some with a window and a rotation of their own."""

from ..config import Config
from ..nn import Attention, Model
from .base import layer_count, sparse_layers
from .grouped import FULL, SLIDING, GroupedQuery, decoder, feed_forwards, layer_windows
from .mixture import Mixture
from .reader import Reader

_ROPE = {
    FULL: {"rope_type": "default", "rope_theta": 500000.0},
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
}


def build(config: Config, reader: Reader) -> Model:
    """The model of a Mellum checkpoint."""
    config = config.with_defaults(rope_parameters=_ROPE)
    layers = layer_count(config)
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    windows = layer_windows(config, layers)
    sparse = sparse_layers(config, layers, 1, [])
    attention = GroupedQuery(
        config,
        eps,
        bias=config.flag("attention_bias", default=False),
        norms=("q_norm", "k_norm"),
        rope=False,
    )
    rotations = attention.rotations()
    mixture = Mixture.of(
        config,
        "moe_intermediate_size",
        {"score": "softmax", "normalize": config.flag("norm_topk_prob", default=True)},
    )

    def attend(n: int, layer: Reader) -> Attention:
        rotation = rotations[FULL if windows[n] is None else SLIDING]
        return attention.read(layer, window=windows[n], **rotation)

    # Multi-token prediction is not run.
    return decoder(
        config,
        reader,
        attend,
        feed_forwards(config, sparse, mixture.read),
        eps=eps,
        ignored=("mtp.",),
    )
