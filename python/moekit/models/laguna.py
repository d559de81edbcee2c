"""Laguna (Poolside): as many heads as each layer says, gated by a softplus; rotation by layer type.

Router: sigmoid scores (of logits that may be softcapped) plus a bias for the selection, the best k,
renormalised, times `moe_routed_scaling_factor`; a shared expert beside them.
"""

from ..config import Config
from ..nn import Attention, Model
from .base import layer_count, sparse_layers
from .grouped import FULL, SLIDING, GroupedQuery, decoder, feed_forwards, layer_windows
from .mixture import Mixture
from .reader import Reader

_ROPE = {
    FULL: {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 0.5},
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
}


def build(config: Config, reader: Reader) -> Model:
    """The model of a Laguna checkpoint."""
    config = config.with_defaults(rope_parameters=_ROPE)
    hidden = config.size("hidden_size")
    layers = layer_count(config)
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    windows = layer_windows(config, layers)
    sparse = sparse_layers(config, layers, 1, [0])
    on_input = config.flag("moe_apply_router_weight_on_input", default=False)
    config.require(not on_input, "moe_apply_router_weight_on_input", "false")
    heads = config.sizes("num_attention_heads_per_layer", least=1)
    if heads:  # then the number for all of them has no meaning
        config = Config({**config, "num_attention_heads": heads[0]}, config.path)
    attention = GroupedQuery(
        config,
        eps,
        bias=config.flag("attention_bias", default=False),
        norms=("q_norm", "k_norm"),
        rope=False,
        gate_activation="softplus",
    )
    heads = heads or [attention.heads] * layers
    config.require(
        len(heads) == layers and not any(count % attention.kv_heads for count in heads),
        "num_attention_heads_per_layer",
        f"{layers} multiples of num_key_value_heads, {attention.kv_heads},",
    )
    gating = config.get("gating", True)
    config.require(
        gating in (True, "per-head", "per-element"), "gating", "true, per-head or per-element"
    )
    rotations = attention.rotations(default_partial=1.0)
    softcap = config.number("moe_router_logit_softcapping", default=0.0)
    mixture = Mixture.of(
        config,
        "moe_intermediate_size",
        {
            "score": "sigmoid",
            "normalize": True,
            "scale": config.number("moe_routed_scaling_factor", default=1.0),
            "softcap": softcap if softcap > 0 else None,
        },
        select_bias="experts.e_score_correction_bias",
        shared=config.size("shared_expert_intermediate_size", least=0),
        shared_name="shared_expert",
    )

    def attend(n: int, layer: Reader) -> Attention:
        width = attention.head_dim if gating == "per-element" else 1
        return attention.read(
            layer,
            heads=heads[n],
            gate=layer.linear("g_proj", heads[n] * width, hidden),
            window=windows[n],
            **rotations[FULL if windows[n] is None else SLIDING],
        )

    return decoder(config, reader, attend, feed_forwards(config, sparse, mixture.read), eps=eps)
