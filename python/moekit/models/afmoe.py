"""AFMoE (Arcee Trinity): norms on both sides of each half, and a gate on attention's output.

Router: sigmoid scores plus a bias for the selection, the best k, renormalised, times `route_scale`.
Layers with a window rotate, full ones do not; embeddings times sqrt(H) where muP is on.
"""

from ..config import Config
from ..nn import Attention, Block, Model
from .base import assemble, layer_count, read_activation
from .grouped import GroupedQuery, layer_windows
from .mixture import Mixture
from .reader import Reader


def build(config: Config, reader: Reader) -> Model:
    """The model of an AFMoE checkpoint."""
    hidden = config.size("hidden_size")
    eps = config.number("rms_norm_eps", default=1e-5, above=0)
    dense = config.size("num_dense_layers", default=1, least=0)
    step = config.size("global_attn_every_n_layers", default=4)
    windows = layer_windows(config, layer_count(config), lambda n: (n + 1) % step != 0)
    attention = GroupedQuery(
        config,
        eps,
        bias=config.flag("attention_bias", default=False),
        norms=("q_norm", "k_norm"),
    )
    inner = config.size("moe_intermediate_size")
    mixture = Mixture.of(
        config,
        "moe_intermediate_size",
        {
            "score": "sigmoid",
            "normalize": True,
            "scale": config.number("route_scale", default=1.0),
        },
        gate="router.gate",
        select_bias="expert_bias",
        shared=inner * config.size("num_shared_experts", default=2, least=0),
    )
    reader.activation = read_activation(config)

    def attend(n: int, layer: Reader) -> Attention:
        gate = layer.linear("gate_proj", attention.heads * attention.head_dim, hidden)
        if windows[n] is None:
            return attention.read(layer, gate=gate, frequencies=None)
        return attention.read(layer, gate=gate, window=windows[n])

    def block(n: int, layer: Reader) -> Block:
        return Block(
            layer.norm("input_layernorm", hidden, eps),
            attend(n, layer.under("self_attn")),
            layer.norm("pre_mlp_layernorm", hidden, eps),
            mixture.read(layer.under("mlp"))
            if n >= dense
            else layer.mlp("mlp", config.size("intermediate_size"), hidden),
            attention_post_norm=layer.norm("post_attention_layernorm", hidden, eps),
            ffn_post_norm=layer.norm("post_mlp_layernorm", hidden, eps),
        )

    scale = hidden**0.5 if config.flag("mup_enabled", default=False) else 1.0
    return assemble(config, reader, hidden, eps, block, embedding_scale=scale)
