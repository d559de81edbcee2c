"""Tiny configurations of the families that carry states, for `checkpoints.tiny_model`."""

from typing import Any

_DELTA: dict[str, Any] = {
    # A norm of what a nearly empty state gives amplifies rounding; large logits would add to it.
    "initializer_range": 0.1,
    "num_hidden_layers": 4,
    "intermediate_size": 56,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 24,
    "num_experts": 5,
    "head_dim": 24,
    "linear_key_head_dim": 10,
    "linear_value_head_dim": 18,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
}
FIELDS: dict[str, dict[str, Any]] = {
    "qwen3_next": _DELTA,
    "qwen3_5_moe_text": _DELTA,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("qwen3_next", {}),
    ("qwen3_next", {"norm_topk_prob": False, "attention_bias": True, "rms_norm_eps": 1e-2}),
    (
        "qwen3_next",
        {
            "layer_types": ["full_attention", "linear_attention", "linear_attention"],
            "num_hidden_layers": 3,
            "mlp_only_layers": [1],
            "tie_word_embeddings": True,
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
            "linear_conv_kernel_dim": 2,
            "linear_value_head_dim": 33,
        },
    ),
    ("qwen3_5_moe_text", {}),
    (
        "qwen3_5_moe_text",
        {
            "num_hidden_layers": 5,
            "full_attention_interval": 2,
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 2,
            "num_experts_per_tok": 1,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 2, 2],
                "mrope_interleaved": True,
            },
        },
    ),
]
