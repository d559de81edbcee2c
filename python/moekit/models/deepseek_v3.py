"""DeepSeek-V3 and R1 (arXiv 2412.19437), Kimi K2: latent attention, shared and routed experts.

Router: sigmoid scores; a bias learnt for balance enters the selection alone; of `n_group` groups
the `topk_group` with the largest sum of their two best experts are kept; the weights are the chosen
scores, renormalised, times `routed_scaling_factor`. The first layers are dense.
"""

from collections.abc import Callable

from ..config import Config
from ..nn import MLA, MLP, Block, Model, MoE
from ..ops import PackedWeight
from .base import MAX_HEAD_DIM, assemble, attention_heads, check_activation, rope_table, top_k
from .reader import Reader
from .rope import read_rope, yarn_softmax_scale

# The norms inside of latent attention do not follow rms_norm_eps.
_LATENT_EPS = 1e-6


def build(config: Config, reader: Reader) -> Model:
    """The model of a DeepSeek-V3 checkpoint."""
    hidden = config.size("hidden_size")
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    dense_layers = config.size("first_k_dense_replace", default=3, least=0)
    config.require(config.size("moe_layer_freq", default=1) == 1, "moe_layer_freq", "1")
    check_activation(config)
    attention = _attention(config, hidden)
    mixture = _mixture(config, hidden)

    def feed_forward(n: int, layer: Reader) -> MoE | MLP:
        if n < dense_layers:
            return layer.mlp("mlp", config.size("intermediate_size"), hidden)
        return mixture(layer.under("mlp"))

    def block(n: int, layer: Reader) -> Block:
        return Block(
            layer.norm("input_layernorm", hidden, eps),
            attention(layer.under("self_attn")),
            layer.norm("post_attention_layernorm", hidden, eps),
            feed_forward(n, layer),
        )

    return assemble(config, reader, hidden, eps, block)


def _attention(config: Config, hidden: int) -> Callable[[Reader], MLA]:
    heads, _ = attention_heads(config)
    nope = config.size("qk_nope_head_dim")
    rope = config.size("qk_rope_head_dim", most=MAX_HEAD_DIM)
    value = config.size("v_head_dim")
    latent = config.size("kv_lora_rank")
    q_latent = config.optional_size("q_lora_rank")
    bias = config.flag("attention_bias", default=False)
    config.require(rope % 2 == 0, "qk_rope_head_dim", "an even number")
    settings = read_rope(config)
    frequencies, factor = rope_table(settings, rope)

    def attention(layer: Reader) -> MLA:
        q_a = q_norm = None
        if q_latent is None:
            q = layer.linear("q_proj", heads * (nope + rope), hidden)
        else:
            q_a = layer.linear("q_a_proj", q_latent, hidden, bias=bias)
            q_norm = layer.norm("q_a_layernorm", q_latent, _LATENT_EPS)
            q = layer.linear("q_b_proj", heads * (nope + rope), q_latent)
        kv_a = layer.linear("kv_a_proj_with_mqa", latent + rope, hidden, bias=bias)
        kv_norm = layer.norm("kv_a_layernorm", latent, _LATENT_EPS)
        key_up, value_up = latent_projections(layer, heads, nope, value, latent)
        return MLA(
            q,
            kv_a,
            kv_norm,
            key_up,
            value_up,
            layer.linear("o_proj", hidden, heads * value, bias=bias),
            q_a=q_a,
            q_norm=q_norm,
            frequencies=frequencies,
            rope_factor=factor,
            interleaved=config.flag("rope_interleave", default=True),
            scale=(nope + rope) ** -0.5 * yarn_softmax_scale(settings),
        )

    return attention


def latent_projections(
    layer: Reader, heads: int, nope: int, value: int, latent: int
) -> tuple[PackedWeight, PackedWeight]:
    """kv_b_proj [h * (N + V), L] head by head: W_uk transposed [h, L, N] and W_uv [h, V, L]."""
    both, format = layer.matrix("kv_b_proj.weight", heads * (nope + value), latent)
    key_up = PackedWeight.empty(format, (heads, latent, nope))
    value_up = PackedWeight.empty(format, (heads, value, latent))
    for head, rows in enumerate(both.reshape(heads, nope + value, latent)):
        key_up.fill(head, rows[:nope].T.copy())
        value_up.fill(head, rows[nope:])
    return key_up, value_up


def _mixture(config: Config, hidden: int) -> Callable[[Reader], MoE]:
    experts = config.size("n_routed_experts", "num_local_experts", "num_experts")
    k = top_k(config, experts)
    inner = config.size("moe_intermediate_size")
    shared = config.size("n_shared_experts", default=1, least=0)
    groups = config.size("n_group", default=1)
    top_groups = config.size("topk_group", default=1)
    config.choice("scoring_func", ["sigmoid"], default="sigmoid")
    config.choice("topk_method", ["noaux_tc"], default="noaux_tc")
    scale = config.number("routed_scaling_factor", default=1.0)
    normalize = config.flag("norm_topk_prob", default=True)
    config.require(experts % groups == 0, "n_group", f"a divisor of the {experts} experts")
    config.require(top_groups <= groups, "topk_group", f"at most n_group, {groups},")
    config.require(
        k <= top_groups * (experts // groups),
        "num_experts_per_tok",
        f"at most the {top_groups * (experts // groups)} experts of topk_group groups",
    )

    def mixture(layer: Reader) -> MoE:
        router = layer.router(
            "gate",
            experts,
            hidden,
            k,
            score="sigmoid",
            select_bias=layer.tensor("gate.e_score_correction_bias", experts),
            groups=groups,
            top_groups=top_groups,
            group_score="top2",
            normalize=normalize,
            scale=scale,
        )
        banks = layer.experts("experts", experts, inner, hidden)
        beside = None
        if shared:
            beside = layer.gated_mlp("shared_experts", shared * inner, hidden, kind="shared")
        return MoE(router, banks, beside)

    return mixture
