"""DeepSeek's line and other families with an attention or a router of their own: sizes of their
tiny checkpoints, and the variants of each that the tests go through."""

from typing import Any

MLA: dict[str, Any] = {
    "num_key_value_heads": 3,
    "intermediate_size": 56,
    "moe_intermediate_size": 40,
    "n_routed_experts": 5,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 22,
    "q_lora_rank": 26,
    "qk_nope_head_dim": 14,
    "qk_rope_head_dim": 6,
    "v_head_dim": 18,
}
# Many heads, so that no two keys have the same score: a ReLU of all heads at 0 would.
INDEXER: dict[str, Any] = {"index_topk": 6, "index_n_heads": 16, "index_head_dim": 10}
GROUPS: dict[str, Any] = {
    "n_routed_experts": 12,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "mscale": 0.7,
    "mscale_all_dim": 1.3,
    "beta_fast": 32,
    "beta_slow": 1,
    "original_max_position_embeddings": 64,
}
COMPRESSED: dict[str, Any] = {
    "num_attention_heads": 4,
    "moe_intermediate_size": 40,
    "n_routed_experts": 5,
    "head_dim": 22,
    "partial_rotary_factor": 0.28,
    "q_lora_rank": 26,
    "o_groups": 2,
    "o_lora_rank": 14,
    "index_n_heads": 16,
    "index_head_dim": 10,
    "index_topk": 2,
    "sliding_window": 5,
    "swiglu_limit": 1.5,
    "compress_rates": {"compressed_sparse_attention": 3, "heavily_compressed_attention": 7},
    "layer_types": [
        "sliding_attention",
        "compressed_sparse_attention",
        "heavily_compressed_attention",
    ],
    "mlp_layer_types": ["hash_moe", "moe", "moe"],
}
FIELDS: dict[str, dict[str, Any]] = {
    "deepseek_v32": {**MLA, **INDEXER, "first_k_dense_replace": 1},
    "glm_moe_dsa": {**MLA, **INDEXER, "first_k_dense_replace": 1},
    "glm4_moe_lite": {**MLA},
    "mistral4": {**MLA, "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.3}},
    "axk1": {**MLA},
    "deepseek_v4": COMPRESSED,
    "longcat_flash": {
        **MLA,
        "num_layers": 2,
        "head_dim": 6,
        "num_hidden_layers": 4,
        "ffn_hidden_size": 56,
        "expert_ffn_hidden_size": 40,
        "zero_expert_num": 3,
        "moe_topk": 3,
        "routed_scaling_factor": 2.0,
    },
    "llama4_text": {
        "num_hidden_layers": 4,
        "intermediate_size": 40,
        "intermediate_size_mlp": 56,
        "num_local_experts": 5,
        "num_experts_per_tok": 1,
        "head_dim": 20,
        "attention_chunk_size": 7,
        "floor_scale": 5,
        "attn_scale": 0.4,
        "pad_token_id": None,
    },
}
SCALED: dict[str, Any] = {"norm_topk_prob": False, "routed_scaling_factor": 1.7}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("deepseek_v32", {}),
    ("deepseek_v32", {**GROUPS, "index_topk": 1, "tie_word_embeddings": True}),
    ("deepseek_v32", {"rope_parameters": YARN, "attention_bias": True, "rms_norm_eps": 3e-2}),
    ("deepseek_v32", {**SCALED, "index_topk": 64, "index_head_dim": 6}),
    ("glm_moe_dsa", {}),
    ("glm_moe_dsa", {"indexer_types": ["full", "shared", "shared"], "index_topk": 4}),
    ("glm_moe_dsa", {"index_topk_freq": 2, "num_hidden_layers": 5, "rope_parameters": YARN}),
    ("glm4_moe_lite", {}),
    ("glm4_moe_lite", {**GROUPS, **SCALED, "mlp_layer_types": ["sparse", "dense", "sparse"]}),
    ("glm4_moe_lite", {"q_lora_rank": None, "rope_interleave": False, "attention_bias": True}),
    ("mistral4", {}),
    ("mistral4", {**GROUPS, **SCALED, "first_k_dense_replace": 1}),
    (
        "mistral4",
        {
            "rope_parameters": {
                **YARN,
                "llama_4_scaling_beta": 0.5,
                "original_max_position_embeddings": 5,
            },
            "q_lora_rank": None,
        },
    ),
    ("mistral4", {"hidden_act": "relu2"}),
    ("axk1", {}),
    ("axk1", {**GROUPS, "rms_norm_eps": 3e-2, "mlp_layer_types": ["sparse", "dense", "sparse"]}),
    ("deepseek_v4", {}),
    ("deepseek_v4", {"hc_mult": 1, "scoring_func": "sigmoid", "rms_norm_eps": 3e-2, "o_groups": 1}),
    (
        "deepseek_v4",
        {
            "rope_parameters": {
                k: v for k, v in YARN.items() if k not in ("mscale", "mscale_all_dim")
            },
            "layer_types": ["compressed_sparse_attention"] * 2 + ["heavily_compressed_attention"],
            "compress_rates": {
                "compressed_sparse_attention": 2,
                "heavily_compressed_attention": 4,
            },
            "index_topk": 3,
            "hc_mult": 3,
            "hc_sinkhorn_iters": 2,
            "mlp_layer_types": ["moe", "hash_moe", "hash_moe"],
            "tie_word_embeddings": True,
        },
    ),
    ("deepseek_v4", {"index_topk": 64, "sliding_window": 64, "routed_scaling_factor": 2.5}),
    ("deepseek_v4", {"n_shared_experts": 0, "hidden_act": "gelu_pytorch_tanh"}),
    ("longcat_flash", {}),
    ("longcat_flash", {"zero_expert_num": 0, "rms_norm_eps": 3e-2, "moe_topk": 2}),
    ("longcat_flash", {"rope_parameters": YARN, "attention_bias": True}),
    ("llama4_text", {}),
    (
        "llama4_text",
        {
            "num_experts_per_tok": 2,
            "interleave_moe_layer_step": 2,
            "use_qk_norm": False,
            "attention_bias": True,
            "rms_norm_eps": 3e-2,
        },
    ),
    (
        "llama4_text",
        {
            "attn_temperature_tuning": False,
            "no_rope_layers": [1, 0, 0, 1],
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
]
