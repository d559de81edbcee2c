"""GGUF architectures whose layers of attention are of two kinds, with a rotation each, and others
that came with them. As the rows of `gguf_architectures`, read and written."""

from .gguf_architectures import LATENT, LATENT_SIZES, SIGMOID, SOFTMAX, Architecture, Banks


def _shared(name: str) -> dict[str, str]:
    return {f"ffn_{part}_shexp": f"mlp.{name}.{part}_proj" for part in ("gate", "up", "down")}


_SIZES = (
    ("head_dim", "attention.key_length"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    ("sliding_window", "attention.sliding_window"),
)

_SPARSE_LATENT = {
    **LATENT,
    **_shared("shared_experts"),
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "indexer.k_norm": "self_attn.indexer.k_norm",
    "indexer.proj": "self_attn.indexer.weights_proj",
    "indexer.attn_k": "self_attn.indexer.wk",
    "indexer.attn_q_b": "self_attn.indexer.wq_b",
}
_ROUTER = (
    ("n_shared_experts", "expert_shared_count"),
    ("first_k_dense_replace", "leading_dense_block_count"),
    ("routed_scaling_factor", "expert_weights_scale"),
    ("norm_topk_prob", "expert_weights_norm"),
    ("n_group", "expert_group_count"),
    ("topk_group", "expert_group_used_count"),
)
_SPARSE_FIELDS = (
    _SIZES[1],
    *_ROUTER,
    *LATENT_SIZES,
    ("index_n_heads", "attention.indexer.head_count"),
    ("index_head_dim", "attention.indexer.key_length"),
    ("index_topk", "attention.indexer.top_k"),
)

KINDS = (
    Architecture(
        "deepseek32",
        "deepseek_v32",
        _SPARSE_LATENT,
        fields=_SPARSE_FIELDS,
        expert_count="n_routed_experts",
        gating=SIGMOID,
        latent=True,
        written={"attention.layer_norm_epsilon": 1e-6},
        fixed={"scoring_func": "sigmoid", "topk_method": "noaux_tc", "rope_interleave": True},
    ),
    Architecture(
        "glm-dsa",
        "glm_moe_dsa",
        _SPARSE_LATENT,
        fields=_SPARSE_FIELDS,
        expert_count="n_routed_experts",
        gating=SIGMOID,
        latent=True,
        written={"attention.layer_norm_epsilon": 1e-6},
        fixed={"rope_interleave": True},
    ),
    Architecture(
        "hy_v3",
        "hy_v3",
        {
            **_shared("shared_mlp"),
            "ffn_gate_inp": "mlp.router.gate",
            "exp_probs_b.bias": "mlp.expert_bias",
            "exp_probs_b": "mlp.expert_bias",
        },
        fields=(
            *_SIZES[:2],
            ("num_shared_experts", "expert_shared_count"),
            ("first_k_dense_replace", "leading_dense_block_count"),
            ("router_scaling_factor", "expert_weights_scale"),
            ("route_norm", "expert_weights_norm"),
        ),
        gating=SIGMOID,
        fixed={"mlp_bias": False},
        sparse=True,
    ),
    Architecture(
        "mellum",
        "mellum",
        fields=_SIZES,
        fixed={"norm_topk_prob": True},
        windows="pattern",
        rotations=True,
        sparse=True,
        differs="llama.cpp rotates layers with a window by the base of the others",
    ),
    Architecture(
        "laguna",
        "laguna",
        {
            **_shared("shared_expert"),
            "attn_gate": "self_attn.g_proj",
            "exp_probs_b.bias": "mlp.experts.e_score_correction_bias",
        },
        fields=(
            *_SIZES,
            ("num_attention_heads_per_layer", "attention.head_count"),
            ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
            ("first_k_dense_replace", "leading_dense_block_count"),
            ("moe_routed_scaling_factor", "expert_weights_scale"),
            ("route_norm", "expert_weights_norm"),
        ),
        gating=SIGMOID,
        fixed={"moe_router_logit_softcapping": 0.0},
        windows="but first",
        partial=True,
        rotations=True,
        sparse=True,
    ),
    Architecture(
        "mimo2",
        "mimo_v2_flash",
        {
            "attn_sinks.weight": "self_attn.attention_sink_bias",
            "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
        },
        fields=(
            *_SIZES,
            ("v_head_dim", "attention.value_length"),
            ("attention_value_scale", "attention.value_scale"),
            ("first_k_dense_replace", "leading_dense_block_count"),
        ),
        expert_count="n_routed_experts",
        gating=SIGMOID,
        fixed={
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "n_group": 1,
            "topk_group": 1,
        },
        windows="pattern",
        partial=True,
        rotations=True,
        sparse=True,
    ),
    Architecture(
        "mistral4",
        "mistral4",
        {**LATENT, **_shared("shared_experts")},
        fields=(
            _SIZES[1],
            *_ROUTER,
            *LATENT_SIZES,
        ),
        banks=Banks(both="gate_up_proj"),
        expert_count="n_routed_experts",
        gating=SOFTMAX,
        latent=True,
        fixed={"rope_interleave": True},
    ),
    Architecture(
        "cohere2moe",
        "cohere2_moe",
        _shared("shared_experts"),
        fields=(
            _SIZES[0],
            _SIZES[2],
            ("intermediate_size", "expert_feed_forward_length"),
            ("prefix_dense_intermediate_size", "feed_forward_length"),
            ("first_k_dense_replace", "leading_dense_block_count"),
            ("num_shared_experts", "expert_shared_count"),
            ("norm_topk_prob", "expert_weights_norm"),
            ("layer_norm_eps", "attention.layer_norm_epsilon"),
            ("logit_scale", "logit_scale"),
        ),
        gating=SIGMOID,
        fixed={
            "expert_selection_fn": "sigmoid",
            "shared_expert_combination_strategy": "average",
            "prefix_dense_sliding_window_pattern": 1,
            "attention_bias": False,
        },
        windows="pattern",
        sparse=True,
    ),
)
