"""GGUF architectures whose layers of attention are of two kinds, with a rotation each, and others
that came with them. As the rows of `gguf_architectures`, read and written."""

from .gguf_architectures import (
    FRAME,
    HEAD_DIM,
    SIGMOID,
    SOFTMAX,
    SPARSE,
    W_PARTS,
    Architecture,
    Banks,
)


def _shared(name: str) -> dict[str, str]:
    return {f"ffn_{part}_shexp": f"mlp.{name}.{part}_proj" for part in ("gate", "up", "down")}


_SIZES = (
    ("head_dim", "attention.key_length"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    ("sliding_window", "attention.sliding_window"),
)

_COHERE_FIELDS = (
    _SIZES[0],
    _SIZES[2],
    ("intermediate_size", "expert_feed_forward_length"),
    ("prefix_dense_intermediate_size", "feed_forward_length"),
    ("first_k_dense_replace", "leading_dense_block_count"),
    ("num_shared_experts", "expert_shared_count"),
    ("norm_topk_prob", "expert_weights_norm"),
    ("layer_norm_eps", "attention.layer_norm_epsilon"),
    ("logit_scale", "logit_scale"),
)
_COHERE = {
    "shared_expert_combination_strategy": "average",
    "prefix_dense_sliding_window_pattern": 1,
    "attention_bias": False,
}

KINDS = (
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
        "cohere2moe",
        "cohere2_moe",
        _shared("shared_experts"),
        fields=_COHERE_FIELDS,
        requires={"expert_gating_func": SOFTMAX},
        # Softmax over all, of these the best, renormalised: a softmax over the best.
        written={"expert_weights_norm": True},
        gating=SOFTMAX,
        fixed={"expert_selection_fn": "softmax", **_COHERE},
        windows="pattern",
        sparse=True,
    ),
    Architecture(
        "cohere2moe",
        "cohere2_moe",
        _shared("shared_experts"),
        fields=_COHERE_FIELDS,
        gating=SIGMOID,
        fixed={"expert_selection_fn": "sigmoid", **_COHERE},
        windows="pattern",
        sparse=True,
    ),
    Architecture(
        "granite_swa",
        "granitemoe_swa",
        {
            "attn_sinks.weight": "self_attn.sinks",
            "ffn_gate_inp": "block_sparse_moe.router",
            # Gate and up of the shared expert stay one matrix.
            "ffn_up_shexp": "shared_mlp.input_linear",
            "ffn_down_shexp": "shared_mlp.output_linear",
        },
        fields=(
            ("attention_multiplier", "attention.scale"),
            ("embedding_multiplier", "embedding_scale"),
            ("residual_multiplier", "residual_scale"),
            ("logits_scaling", "logit_scale"),
            ("shared_intermediate_size", "expert_shared_feed_forward_length"),
            _SIZES[2],
        ),
        experts="block_sparse_moe.experts",
        banks=Banks(both="gate_up_proj"),
        expert_count="num_local_experts",
        paired=True,
        windows="pattern",
    ),
    Architecture(
        "gemma4",
        "gemma4_text",
        {
            "post_attention_norm": "post_attention_layernorm",
            "layer_output_scale.weight": "layer_scalar",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
            "post_ffw_norm_1": "post_feedforward_layernorm_1",
            "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
            "post_ffw_norm_2": "post_feedforward_layernorm_2",
            "ffn_gate_inp": "router.proj",
            "ffn_gate_inp.scale": "router.scale",
            "ffn_down_exps.scale": "router.per_expert_scale",
            "inp_gate": "per_layer_input_gate",
            "proj": "per_layer_projection",
            "post_norm": "post_per_layer_input_norm",
        },
        frame={
            **FRAME,
            "per_layer_token_embd": "model.embed_tokens_per_layer",
            "per_layer_model_proj": "model.per_layer_model_projection",
            "per_layer_proj_norm": "model.per_layer_projection_norm",
        },
        fields=(
            _SIZES[1],
            _SIZES[2],
            ("top_k_experts", "expert_used_count"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ),
        experts="experts",
        banks=Banks(both="gate_up_proj"),
        windows="pattern",
        own=("attention.head_count_kv",),
        activation="gelu_tanh",
        fixed={"attention_bias": False},
    ),
    Architecture(
        "minimax-01",
        "minimax",
        {
            **SPARSE,
            "attn_qkv": "self_attn.qkv_proj",
            "attn_gate": "self_attn.output_gate",
            "attn_norm_2": "self_attn.norm",
        },
        fields=HEAD_DIM,
        experts="block_sparse_moe.experts",
        banks=W_PARTS,
        expert_count="num_local_experts",
        partial=True,
        beside={"attn_qkv": {"attn_output": "self_attn.out_proj"}},
        differs="llama.cpp normalises lightning attention with rms_norm_eps, not with 1e-6",
    ),
)
