"""ERNIE 4.5 (technical report, 2025): experts in some layers, shared ones beside them.

Router: softmax over all experts; a bias enters the selection alone; the chosen are divided by
their sum, or by `moe_norm_min` where that is more.
Rotation goes by neighbouring pairs.
"""

from ..config import Config
from ..nn import MLP, Model, MoE
from .base import layer_count, top_k
from .grouped import GroupedQuery, decoder
from .mixture import Mixture
from .reader import Reader
from .rope import read_rope


def build(config: Config, reader: Reader) -> Model:
    """The model of an ERNIE 4.5 MoE checkpoint."""
    hidden = config.size("hidden_size")
    layers = layer_count(config)
    eps = config.number("rms_norm_eps", default=1e-5, above=0)
    bias = config.flag("use_bias", default=False)
    first = config.size("moe_layer_start_index", default=1, least=0)
    last = config.size("moe_layer_end_index", default=-1, least=-1)
    step = config.size("moe_layer_interval", default=1)
    last = layers - 1 if last == -1 else last
    attention = GroupedQuery(
        config, eps, bias=bias, rope=read_rope(config, default_theta=5e5), interleaved=True
    )
    experts = config.size("moe_num_experts", "num_experts")
    inner = config.size("moe_intermediate_size")
    mixture = Mixture(
        hidden,
        experts,
        top_k(config, experts, "moe_k", "num_experts_per_tok"),
        inner,
        {
            "score": "softmax",
            "normalize": True,
            "normalize_min": config.number("moe_norm_min", default=1e-12, least=0),
        },
        select_bias="moe_statics.e_score_correction_bias",
        bias_shape=(1,),
        shared=inner * config.size("moe_num_shared_experts", default=2, least=0),
        shared_bias=bias,
    )

    def feed_forward(n: int, layer: Reader) -> MoE | MLP:
        if (n + 1) % step == 0 and first <= n <= last:
            return mixture.read(layer.under("mlp"))
        return layer.mlp("mlp", config.size("intermediate_size"), hidden, bias=bias)

    return decoder(
        config,
        reader,
        lambda n, layer: attention.read(layer),
        feed_forward,
        eps=eps,
        tied=True,
        head_bias=bias,
        # Multi-token prediction, which is not run.
        ignored=("model.mtp_", "mtp"),
    )
