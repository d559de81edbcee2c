"""DBRX (Databricks, 2024): LayerNorm without bias, one matrix for q, k and v, clamped projections.

Router: softmax over all experts, the best k, divided by their sum. An expert's matrices are
rows of three tensors that hold all experts, the last one transposed.
"""

from ..config import Config
from ..nn import Attention, Block, Model, Norm
from .base import MAX_HEAD_DIM, MAX_LAYERS, Names, assemble, read_activation, rope_options, top_k
from .expert_layouts import Layout
from .mixture import Mixture
from .reader import Reader
from .rope import read_rope

_NAMES = Names("transformer.wte", "transformer.blocks", "transformer.norm_f")
_EPS = 1e-5


def build(config: Config, reader: Reader) -> Model:
    """The model of a DBRX checkpoint."""
    hidden = config.size("d_model")
    heads = config.size("n_heads")
    layers = config.size("n_layers", most=MAX_LAYERS)
    attn, ffn = config.section("attn_config"), config.section("ffn_config")
    kv_heads = attn.size("kv_n_heads", default=1)
    head_dim = hidden // heads
    attn.require(heads % kv_heads == 0, "kv_n_heads", f"a divisor of n_heads, {heads},")
    config.require(
        head_dim * heads == hidden and head_dim % 2 == 0 and head_dim <= MAX_HEAD_DIM,
        "n_heads",
        f"a divisor of d_model, {hidden}, that leaves an even size",
    )
    clip = None if attn.get("clip_qkv") is None else attn.number("clip_qkv", above=0)
    theta = attn.number("rope_theta", default=10000.0, above=0)
    rotation = rope_options(read_rope(config, theta), head_dim)
    experts = ffn.size("moe_num_experts", default=4)
    norm_of_weights = ffn.get("moe_normalize_expert_weights", 1.0)
    ffn.require(norm_of_weights in (None, 1), "moe_normalize_expert_weights", "1 or null")
    reader.activation = read_activation(ffn.section("ffn_act_fn"), "name")
    mixture = Mixture(
        hidden,
        experts,
        top_k(ffn, experts, "moe_top_k"),
        ffn.size("ffn_hidden_size", default=3584),
        {"score": "softmax", "normalize": norm_of_weights is not None},
        gate="router.layer",
        experts_name="experts.mlp",
        parts=("w1", "v1", "w2"),
        layout=Layout(stacked=True),
    )

    def norm(layer: Reader, name: str) -> Norm:
        return layer.layer_norm(name, hidden, _EPS, bias=False)

    def attention(layer: Reader) -> Attention:
        kv_size = kv_heads * head_dim
        q, k, v = layer.split_linear("Wqkv", (hidden, kv_size, kv_size), hidden)
        return Attention(
            q,
            k,
            v,
            layer.linear("out_proj", hidden, hidden),
            heads=heads,
            kv_heads=kv_heads,
            clip=clip,
            **rotation,
        )

    def block(n: int, layer: Reader) -> Block:
        half = layer.under("norm_attn_norm")
        return Block(
            norm(half, "norm_1"),
            attention(half.under("attn")),
            norm(half, "norm_2"),
            mixture.read(layer.under("ffn")),
        )

    sizes = Config({**config, "num_hidden_layers": layers}, config.path)
    return assemble(sizes, reader, hidden, _EPS, block, norm=norm, names=_NAMES)
