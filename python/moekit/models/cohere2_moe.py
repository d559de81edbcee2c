"""Cohere's Command MoE: attention and experts see the same norm, and what both give is added.

Router: the best k logits, softmax over these, or their sigmoid. A shared expert is added or
averaged in. Layers with a window rotate neighbouring pairs, full ones have no position.
"""

from ..config import Config
from ..nn import MLP, Attention, Block, Model, MoE, Norm
from .base import assemble, layer_count, read_activation, sparse_layers
from .grouped import GroupedQuery, layer_windows
from .mixture import Mixture
from .reader import Reader


def build(config: Config, reader: Reader) -> Model:
    """The model of a Cohere2-MoE checkpoint."""
    hidden = config.size("hidden_size")
    layers = layer_count(config)
    dense = config.size("first_k_dense_replace", default=0, least=0)
    sparse = sparse_layers(config, layers, 1, list(range(min(dense, layers))))
    dense_step = config.size("prefix_dense_sliding_window_pattern", default=1)
    step = config.size("sliding_window_pattern", default=4)
    windows = layer_windows(
        config,
        layers,
        # Dense layers at the beginning count by themselves.
        lambda n: (n + 1) % dense_step != 0 if n < dense else (n - dense + 1) % step != 0,
    )
    attention = GroupedQuery(
        config, bias=config.flag("attention_bias", default=False), interleaved=True
    )
    score = config.choice("expert_selection_fn", ["softmax", "sigmoid"], default="softmax")
    normalize = score == "sigmoid" and config.flag("norm_topk_prob", default=True)
    inner = config.size("intermediate_size")
    mixture = Mixture.of(
        config,
        "intermediate_size",
        {"score": "softmax_topk" if score == "softmax" else score, "normalize": normalize},
        shared=inner * config.size("num_shared_experts", default=0, least=0),
    )
    combined = config.choice(
        "shared_expert_combination_strategy", ["average", "sum"], default="average"
    )
    average = combined == "average" and mixture.shared > 0
    rms = config.get("rms_norm_eps") is not None
    eps = config.number("rms_norm_eps" if rms else "layer_norm_eps", default=1e-5, above=0)
    reader.activation = read_activation(config)

    def norm(layer: Reader, name: str) -> Norm:
        if rms:
            return layer.norm(name, hidden, eps)
        return layer.layer_norm(name, hidden, eps, bias=False)

    def attend(n: int, layer: Reader) -> Attention:
        if windows[n] is not None:
            return attention.read(layer, window=windows[n])
        if not sparse[n] and dense_step == 1:
            return attention.read(layer)
        return attention.read(layer, frequencies=None)

    def feed_forward(n: int, layer: Reader) -> MoE | MLP:
        if sparse[n]:
            return mixture.read(layer.under("mlp"), average=average)
        return layer.mlp("mlp", config.size("prefix_dense_intermediate_size"), hidden)

    def block(n: int, layer: Reader) -> Block:
        return Block(
            norm(layer, "input_layernorm"),
            attend(n, layer.under("self_attn")),
            None,
            feed_forward(n, layer),
            parallel=True,
        )

    return assemble(
        config,
        reader,
        hidden,
        eps,
        block,
        norm=norm,
        tied=True,
        logit_scale=config.number("logit_scale", default=0.0625),
    )
