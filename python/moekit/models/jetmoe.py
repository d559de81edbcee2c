"""JetMoE (arXiv 2404.07413): experts in the feed-forward layers and in the attention.

Router of both: the best k logits, softmax over these. Attention's experts are pairs of query and
output projections over common keys and values; both halves end with a bias of their own.
"""

from ..config import Config
from ..nn import AttentionMixture, Block, Model
from ..ops import PackedWeight
from .base import MAX_HEAD_DIM, assemble, read_activation, rope_table
from .expert_layouts import Layout
from .mixture import Mixture
from .reader import Reader
from .rope import read_rope

# The norms of the blocks do not follow rms_norm_eps.
_BLOCK_EPS = 1e-6
_SCORE = "softmax_topk"


def build(config: Config, reader: Reader) -> Model:
    """The model of a JetMoE checkpoint."""
    hidden = config.size("hidden_size")
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    kv_heads = config.size("num_key_value_heads")
    head_dim = config.size("kv_channels", most=MAX_HEAD_DIM)
    config.require(head_dim % 2 == 0, "kv_channels", "an even number")
    reader.activation = read_activation(config, "activation_function")
    frequencies, factor = rope_table(read_rope(config), head_dim)
    mixture = Mixture.of(
        config,
        "intermediate_size",
        {"score": _SCORE},
        gate="mlp.router.layer",
        experts_name="mlp",
        layout=Layout(both="input_linear.weight", down="output_linear.weight"),
    )

    def attention(layer: Reader) -> AttentionMixture:
        experts, width = layer.under("experts"), kv_heads * head_dim
        k, v = layer.split_linear("kv_proj", (width, width), hidden)
        count = mixture.experts
        return AttentionMixture(
            experts.router("router.layer", count, hidden, mixture.k, score=_SCORE),
            _bank(experts, "input_linear.weight", count, width, hidden),
            k,
            v,
            _bank(experts, "output_linear.weight", count, hidden, width),
            experts.tensor("bias", hidden),
            kv_heads=kv_heads,
            frequencies=frequencies,
            rope_factor=factor,
        )

    def block(n: int, layer: Reader) -> Block:
        return Block(
            layer.norm("input_layernorm", hidden, _BLOCK_EPS),
            attention(layer.under("self_attention")),
            layer.norm("post_attention_layernorm", hidden, _BLOCK_EPS),
            mixture.read(layer, bias=layer.tensor("mlp.bias", hidden)),
        )

    return assemble(config, reader, hidden, eps, block, tied=True)


def _bank(layer: Reader, name: str, count: int, rows: int, cols: int) -> PackedWeight:
    """A tensor [E, rows, cols] of attention, matrix by matrix."""
    shape = (count, rows, cols)
    pieces = [layer.piece(name, shape, expert=expert) for expert in range(count)]
    bank = PackedWeight.empty(layer.formats.attention or layer.stored_format(name), shape)
    for expert, piece in enumerate(pieces):
        layer.fill(bank, expert, piece)
    return bank
