"""FlexOlmo (arXiv 2507.07024): OLMoE's parts, with norms behind each half instead of before it."""

from ..config import Config
from ..nn import Block, Model
from .base import assemble, read_activation
from .olmoe import attention_of, mixture_of
from .reader import Reader


def build(config: Config, reader: Reader) -> Model:
    """The model of a FlexOlmo checkpoint."""
    hidden = config.size("hidden_size")
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    attention, mixture = attention_of(config, eps, default_theta=5e5), mixture_of(config)
    reader.activation = read_activation(config)

    def block(n: int, layer: Reader) -> Block:
        return Block(
            None,
            attention.read(layer.under("self_attn")),
            None,
            mixture.read(layer.under("mlp")),
            attention_post_norm=layer.norm("post_attention_layernorm", hidden, eps),
            ffn_post_norm=layer.norm("post_feedforward_layernorm", hidden, eps),
        )

    return assemble(config, reader, hidden, eps, block)
