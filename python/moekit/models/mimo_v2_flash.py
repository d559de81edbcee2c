"""MiMo-V2-Flash (Xiaomi, arXiv 2601.02780): layers with a window have sinks and twice the kv heads.

Router: DeepSeek-V3's, without shared experts. A third of each head rotates, with a base for each
layer type; values are narrower than keys and scaled.
"""

from typing import Any

from ..config import Config
from ..nn import Attention, Model
from .base import layer_count, sparse_layers
from .grouped import FULL, SLIDING, GroupedQuery, decoder, feed_forwards, layer_windows
from .latent import grouped_mixture
from .reader import Reader
from .rope import RopeSettings, read_rope

_ROPE = {
    FULL: {"rope_type": "default", "rope_theta": 5000000.0},
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
}


def build(config: Config, reader: Reader) -> Model:
    """The model of a MiMo-V2-Flash checkpoint."""
    before = config.optional_size("sliding_window_size")
    if before is not None:  # the tokens before the query, in the released files
        config = Config({**config, "sliding_window": before + 1}, config.path)
    config = config.with_defaults(
        rope_parameters=_ROPE, sliding_window=129, n_shared_experts=0, routed_scaling_factor=1.0
    )
    layers = layer_count(config)
    eps = config.number("rms_norm_eps", default=1e-5, above=0)
    windows = layer_windows(config, layers, lambda n: n > 0 and (n + 1) % 6 != 0)
    sparse = sparse_layers(config, layers, 1, [0])
    value_scale = 1.0  # where the file has null
    if "attention_value_scale" not in config or config["attention_value_scale"] is not None:
        value_scale = config.number("attention_value_scale", default=0.707)
    attention = GroupedQuery(
        config,
        eps,
        bias=config.flag("attention_bias", default=False),
        o_bias=False,
        value_dim=config.size("v_head_dim", default=128),
        rope=False,
        value_scale=value_scale,
    )
    rotations = {kind: attention.rotation(_rope(config, kind)) for kind in (FULL, SLIDING)}
    config.require(
        not any(windows) or attention.heads % (2 * attention.kv_heads) == 0,
        "num_key_value_heads",
        f"half a divisor of num_attention_heads, {attention.heads},",
    )
    mixture = grouped_mixture(config)

    def attend(n: int, layer: Reader) -> Attention:
        if windows[n] is None:
            return attention.read(layer, **rotations[FULL])
        options: dict[str, Any] = {"window": windows[n], **rotations[SLIDING]}
        sinks = layer.tensor("attention_sink_bias", attention.heads)
        return attention.read(layer, kv_heads=2 * attention.kv_heads, sinks=sinks, **options)

    # Multi-token prediction is not run.
    return decoder(
        config,
        reader,
        attend,
        feed_forwards(config, sparse, mixture),
        eps=eps,
        ignored=("model.mtp.",),
    )


def _rope(config: Config, kind: str) -> RopeSettings:
    """Settings of a layer type: where no part is given, transformers takes a third of a head in the
    plain kind and all of it in a scaled one."""
    settings = read_rope(config, layer_type=kind, default_partial=0.334)
    if settings.kind == "default":
        return settings
    return read_rope(config, layer_type=kind, default_partial=1.0)
