"""Hunyuan 3 (Tencent): dense first, then experts beside a shared one; q and k normalised by head.

Router: sigmoid scores plus a bias for the selection, the best k, renormalised, times
`router_scaling_factor`.
"""

from ..config import Config
from ..nn import Model
from .base import layer_count, sparse_layers
from .grouped import GroupedQuery, decoder, feed_forwards
from .mixture import Mixture
from .reader import Reader
from .rope import read_rope


def build(config: Config, reader: Reader) -> Model:
    """The model of a Hunyuan 3 checkpoint."""
    eps = config.number("rms_norm_eps", default=1e-5, above=0)
    mlp_bias = config.flag("mlp_bias", default=False)
    sparse = sparse_layers(config, layer_count(config), 1, [0])
    attention = GroupedQuery(
        config,
        eps,
        bias=config.flag("attention_bias", default=False),
        norms=("q_norm", "k_norm"),
        rope=read_rope(config, default_theta=11158840.0),
    )
    inner = config.size("moe_intermediate_size")
    shared = inner * config.size("num_shared_experts", default=1, least=0)
    mixture = Mixture.of(
        config,
        "moe_intermediate_size",
        {
            "score": "sigmoid",
            "normalize": True,
            "scale": config.number("router_scaling_factor", default=2.826),
        },
        gate="router.gate",
        select_bias="expert_bias",
        # Without a size transformers gives its feed-forward module that of the dense layers.
        shared=shared or config.size("intermediate_size"),
        shared_name="shared_mlp",
        shared_bias=mlp_bias,
    )

    return decoder(
        config,
        reader,
        lambda n, layer: attention.read(layer),
        feed_forwards(config, sparse, mixture.read, bias=mlp_bias),
        eps=eps,
    )
