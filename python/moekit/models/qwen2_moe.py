"""Qwen1.5-MoE and Qwen2-MoE (arXiv 2407.10671): a gated shared expert beside many small ones.

Router: softmax over all experts, the best k, renormalised where norm_topk_prob says so. The shared
expert counts as much as the sigmoid of a layer with one output says.
"""

from ..config import Config
from ..nn import MLP, Linear, Model, MoE
from .base import layer_count, sparse_layers
from .grouped import GroupedQuery, decoder, layer_windows
from .mixture import Mixture
from .reader import Reader


def build(config: Config, reader: Reader) -> Model:
    """The model of a Qwen2-MoE checkpoint."""
    hidden = config.size("hidden_size")
    layers = layer_count(config)
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    # Transformers' rule for files that do not list their layers.
    window_layers = config.size("max_window_layers", default=28, least=0)
    windows: list[int | None] = [None] * layers
    if config.flag("use_sliding_window", default=False):
        windows = layer_windows(config, layers, lambda n: n % 2 == 0 and n < window_layers)
    sparse = sparse_layers(
        config,
        layers,
        config.size("decoder_sparse_step", default=1),
        config.sizes("mlp_only_layers"),
    )
    attention = GroupedQuery(config, eps, bias=config.flag("qkv_bias", default=True), o_bias=False)
    mixture = Mixture.of(
        config,
        "moe_intermediate_size",
        {"score": "softmax", "normalize": config.flag("norm_topk_prob", default=False)},
        shared=config.size("shared_expert_intermediate_size", least=0),
        shared_name="shared_expert",
    )

    def feed_forward(n: int, layer: Reader) -> MoE | MLP:
        if not sparse[n]:
            return layer.mlp("mlp", config.size("intermediate_size"), hidden)
        ffn = layer.under("mlp")
        if not mixture.shared:
            ffn.ignore("shared_expert_gate.weight")
            return mixture.read(ffn)
        gate = ffn.packed("shared_expert_gate.weight", 1, hidden, reader.formats.router)
        return mixture.read(ffn, shared_gate=Linear(gate, kind="router"))

    return decoder(
        config,
        reader,
        lambda n, layer: attention.read(layer, window=windows[n]),
        feed_forward,
        eps=eps,
    )
