"""The families with grouped-query attention: sizes of their tiny checkpoints, and the variants of
each that the tests go through."""

from typing import Any

FIELDS: dict[str, dict[str, Any]] = {
    "qwen2_moe": {
        "intermediate_size": 56,
        "moe_intermediate_size": 40,
        "shared_expert_intermediate_size": 28,
        "num_experts": 5,
    },
    "olmoe": {"intermediate_size": 40, "num_experts": 5, "pad_token_id": None},
    "flex_olmo": {"intermediate_size": 40, "num_experts": 5, "pad_token_id": None},
    "glm4_moe": {
        "intermediate_size": 56,
        "moe_intermediate_size": 40,
        "head_dim": 20,
        "n_routed_experts": 5,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 0,
    },
    "solar_open": {
        "moe_intermediate_size": 40,
        "head_dim": 20,
        "n_routed_experts": 5,
    },
    "dots1": {
        "intermediate_size": 56,
        "moe_intermediate_size": 40,
        "n_routed_experts": 5,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
    "minimax_m2": {"intermediate_size": 40, "head_dim": 20, "num_local_experts": 5},
    "ernie4_5_moe": {
        "intermediate_size": 56,
        "moe_intermediate_size": 40,
        "moe_num_experts": 5,
        "moe_k": 2,
        "num_experts_per_tok": 2,
        "pad_token_id": None,
    },
    "granitemoe": {
        "intermediate_size": 40,
        "num_local_experts": 5,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.3,
        "logits_scaling": 1.7,
    },
    "granitemoeshared": {
        "intermediate_size": 40,
        "num_local_experts": 5,
        "shared_intermediate_size": 28,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.3,
        "logits_scaling": 1.7,
    },
    "gpt_oss": {
        "intermediate_size": 40,
        "num_local_experts": 5,
        "head_dim": 20,
        "sliding_window": 6,
        "swiglu_limit": 1.1,
    },
}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 8000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 64,
}
GROUPS = {"num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "n_routed_experts": 12}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("qwen2_moe", {}),
    ("qwen2_moe", {"norm_topk_prob": True, "qkv_bias": False, "tie_word_embeddings": True}),
    ("qwen2_moe", {"mlp_only_layers": [1], "head_dim": 10, "num_key_value_heads": 3}),
    ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 4, "decoder_sparse_step": 2}),
    ("olmoe", {}),
    ("olmoe", {"clip_qkv": 0.7, "attention_bias": True, "num_key_value_heads": 3}),
    ("olmoe", {"norm_topk_prob": True, "num_attention_heads": 6, "num_key_value_heads": 2}),
    ("flex_olmo", {}),
    ("flex_olmo", {"attention_bias": True, "num_key_value_heads": 3, "rms_norm_eps": 1e-2}),
    ("glm4_moe", {}),
    ("glm4_moe", {"use_qk_norm": True, "attention_bias": True, "routed_scaling_factor": 2.5}),
    ("glm4_moe", {**GROUPS, "norm_topk_prob": False, "n_shared_experts": 1}),
    ("glm4_moe", {"rope_parameters": {**LLAMA3, "partial_rotary_factor": 0.2}}),
    ("solar_open", {}),
    ("solar_open", {"attention_bias": True, "rope_parameters": YARN, "n_shared_experts": 2}),
    ("dots1", {}),
    ("dots1", {"attention_bias": True, "norm_topk_prob": True, "routed_scaling_factor": 2.5}),
    ("dots1", {"sliding_window": 4, "max_window_layers": 1, **GROUPS}),
    ("minimax_m2", {}),
    ("minimax_m2", {"rotary_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2}),
    ("ernie4_5_moe", {}),
    ("ernie4_5_moe", {"use_bias": True, "moe_num_shared_experts": 1, "moe_layer_interval": 2}),
    ("ernie4_5_moe", {"moe_layer_start_index": 0, "moe_layer_end_index": 1}),
    ("ernie4_5_moe", {"moe_num_shared_experts": 0, "tie_word_embeddings": False}),
    ("granitemoe", {}),
    ("granitemoe", {"attention_bias": True, "tie_word_embeddings": True, "rope_parameters": YARN}),
    ("granitemoeshared", {}),
    ("granitemoeshared", {"shared_intermediate_size": 0, "num_experts_per_tok": 5}),
    ("gpt_oss", {}),
    ("gpt_oss", {"swiglu_limit": 7.0, "num_attention_heads": 6, "num_key_value_heads": 3}),
    ("gpt_oss", {"attention_bias": False, "rope_parameters": YARN, "tie_word_embeddings": True}),
]
