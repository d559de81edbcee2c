"""The families that `model.save` writes, and the settings with which GGUF can say them."""

from typing import Any

import checkpoints
import grouped_families
import latent_families
import recurrent_families
import test_models_gguf

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 90, 17]
MODULES = (grouped_families, latent_families, recurrent_families)
EVERY = sorted({*checkpoints.FAMILIES, *(family for m in MODULES for family in m.FIELDS)})
# The converter of the tests does not write these; llama.cpp says whether the files are right.
WRITTEN = (
    *(
        "afmoe",
        "cohere2_moe",
        "deepseek_v32",
        "deepseek_v4",
        "exaone_moe",
        "gemma4_text",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "granitemoe_swa",
        "hy_v3",
        "laguna",
    ),
    *("lfm2_moe", "mellum", "mimo_v2_flash", "minimax", "minimax_m3_vl_text"),
    *("mistral4", "solar_open"),
)
BOTH = [*test_models_gguf.FAMILIES, *WRITTEN]
CHANGES = {
    **test_models_gguf.CHANGES,
    "afmoe": {"mup_enabled": True, "global_attn_every_n_layers": 4},
    "cohere2_moe": {"expert_selection_fn": "sigmoid"},
    # llama.cpp's rotation of the indexer needs multiples of 64.
    "deepseek_v32": {"index_head_dim": 64},
    "deepseek_v4": {
        "index_head_dim": 64,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
    },
    "glm_moe_dsa": {"index_head_dim": 64, "indexer_types": ["full", "shared", "full"]},
    "laguna": {
        "num_hidden_layers": 5,
        "layer_types": ["full_attention", *["sliding_attention"] * 3, "full_attention"],
        "num_attention_heads_per_layer": [3, 4, 2, 5, 3],
    },
    # llama.cpp knows one base for both kinds of layers.
    "mellum": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 5e5}
            for kind in ("full_attention", "sliding_attention")
        }
    },
    # llama.cpp's epsilon of lightning attention is that of the other norms.
    "minimax": {
        "rms_norm_eps": 1e-6,
        **{f"{part}_alpha_factor": 1.5 for part in ("linear_attn", "full_attn", "mlp")},
    },
    # llama.cpp chooses blocks with flash attention alone; 64 of 3 keys are all there are.
    "minimax_m3_vl_text": {
        "swiglu_limit": 7.0,
        "shared_intermediate_size": 80,
        "layer_types": ["full_attention", *["minimax_m3_sparse"] * 2],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "index_topk_blocks": 64,
    },
    "mistral4": {
        "rope_parameters": {
            **latent_families.FIELDS["mistral4"]["rope_parameters"],
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4,
        }
    },
}
# What GGUF cannot say has to be as llama.cpp takes it for granted.
HYBRIDS: dict[str, dict[str, Any]] = {
    "jamba": {"num_hidden_layers": 5},
    "lfm2_moe": {},
    "granitemoehybrid": {"num_key_value_heads": 3},
    # llama.cpp wants keys and values of one width.
    "qwen3_next": {"linear_value_head_dim": 10},
    "qwen3_5_moe_text": {"linear_value_head_dim": 10},
    "kimi_linear": {"linear_num_heads": 3},
    "bailing_hybrid": {},
    "nemotron_h": {
        "time_step_min": 1e-30,
        "layers_block_type": ["mamba", "moe", "attention", "moe", "mamba", "moe"],
        "head_dim": 24,
    },
}
