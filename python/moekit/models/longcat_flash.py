"""LongCat-Flash (arXiv 2509.01322): experts on a shortcut, and zero experts that do nothing.

Router: softmax over routed and zero experts, a bias that enters the selection alone, the best k as
they are, times `routed_scaling_factor`. A zero expert gives its token back. Each layer has two
latent attentions, whose queries and latents are scaled for the sizes they are compressed to.
"""

from ..config import Config
from ..nn import Model, MoE, ShortcutBlock
from .base import MAX_LAYERS, assemble, read_activation, top_k
from .expert_layouts import Layout
from .latent import latent_attention
from .reader import Reader
from .rope import read_rope


def build(config: Config, reader: Reader) -> Model:
    """The model of a LongCat-Flash checkpoint."""
    hidden = config.size("hidden_size")
    eps = config.number("rms_norm_eps", default=1e-5, above=0)
    layers = config.size("num_layers", most=MAX_LAYERS)
    inner = config.size("ffn_hidden_size", "intermediate_size")
    reader.activation = read_activation(config)
    attention = latent_attention(
        config,
        rope_settings=read_rope(config, default_theta=1e7),
        query_gain=(hidden / config.size("q_lora_rank")) ** 0.5,
        latent_gain=(hidden / config.size("kv_lora_rank")) ** 0.5,
    )

    def block(n: int, layer: Reader) -> ShortcutBlock:
        attentions = [attention(n, layer.under(f"self_attn.{half}")) for half in (0, 1)]
        attentions[1].first_stream = len(attentions[0].cache_rows)
        return ShortcutBlock(
            [layer.norm(f"input_layernorm.{half}", hidden, eps) for half in (0, 1)],
            attentions,
            [layer.norm(f"post_attention_layernorm.{half}", hidden, eps) for half in (0, 1)],
            [layer.mlp(f"mlps.{half}", inner, hidden) for half in (0, 1)],
            _mixture(config, layer.under("mlp"), hidden),
        )

    # The layers for multi-token prediction stand apart.
    return assemble(config, reader, hidden, eps, block, layers=layers, ignored=("model.mtp.",))


def _mixture(config: Config, layer: Reader, hidden: int) -> MoE:
    experts = config.size("n_routed_experts", "num_local_experts")
    zero = config.size("zero_expert_num", default=0, least=0)
    k = top_k(config, experts + zero, "moe_topk", "num_experts_per_tok")
    config.choice("zero_expert_type", ["identity"], default="identity")
    bias = layer.tensor("router.e_score_correction_bias", experts + zero)
    router = layer.router(
        "router.classifier",
        experts + zero,
        hidden,
        k,
        score="softmax",
        select_bias=bias,
        scale=config.number("routed_scaling_factor", default=6.0),
    )
    # Transformers keeps a bias that it does not add, and writes halves of the zero experts.
    layer.ignore("router.classifier.bias")
    for expert in range(experts, experts + zero):
        for part in ("gate_proj", "up_proj"):
            layer.ignore(f"experts.{expert}.{part}.weight")
    inner = config.size("expert_ffn_hidden_size", "moe_intermediate_size")
    banks = layer.experts("experts", experts, inner, hidden, layout=Layout(spare=zero))
    return MoE(router, banks, zero_experts=zero)
