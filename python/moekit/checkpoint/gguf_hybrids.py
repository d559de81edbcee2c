"""GGUF architectures whose layers differ in kind: states here, attention there. The files hold
-e^A_log, and say which layer is which by arrays and by what is there; `saving.gguf_states` writes
some of them.
"""

from .gguf_architectures import INPUT_OUTPUT, LATENT, LATENT_SIZES, SIGMOID, Architecture, Banks

_STATES = {
    "ssm_in": "in_proj",
    "ssm_conv1d": "conv1d",
    "ssm_a": "A",
    "ssm_d": "D",
    "ssm_out": "out_proj",
}
_MAMBA = {f"{name}": f"mamba.{part}" for name, part in _STATES.items()}
_MIXER = {f"{name}": f"mixer.{part}" for name, part in _STATES.items()}

_QWEN = {
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}
_QWEN_FIELDS = (
    ("head_dim", "attention.key_length"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
    ("linear_conv_kernel_dim", "ssm.conv_kernel"),
    ("linear_key_head_dim", "ssm.state_size"),
    ("linear_num_key_heads", "ssm.group_count"),
    ("linear_num_value_heads", "ssm.time_step_rank"),
    ("full_attention_interval", "full_attention_interval"),
)

HYBRIDS = (
    Architecture(
        "jamba",
        "jamba",
        {
            **_MAMBA,
            "ssm_x": "mamba.x_proj",
            "ssm_dt": "mamba.dt_proj",
            "ssm_dt_norm": "mamba.dt_layernorm",
            "ssm_b_norm": "mamba.b_layernorm",
            "ssm_c_norm": "mamba.c_layernorm",
            "ffn_norm": "pre_ff_layernorm",
            "ffn_gate": "feed_forward.gate_proj",
            "ffn_up": "feed_forward.up_proj",
            "ffn_down": "feed_forward.down_proj",
            "ffn_gate_inp": "feed_forward.router",
        },
        fields=(
            ("mamba_d_conv", "ssm.conv_kernel"),
            ("mamba_d_state", "ssm.state_size"),
            ("mamba_dt_rank", "ssm.time_step_rank"),
        ),
        experts="feed_forward.experts",
        frame={
            "token_embd": "model.embed_tokens",
            "output_norm": "model.final_layernorm",
            "output": "lm_head",
        },
        kinds="layers_block_type",
    ),
    Architecture(
        "nemotron_h_moe",
        "nemotron_h",
        {
            **_MIXER,
            "ssm_dt.bias": "mixer.dt_bias",
            "ssm_norm": "mixer.norm",
            "attn_norm": "norm",
            "attn_q": "mixer.q_proj",
            "attn_k": "mixer.k_proj",
            "attn_v": "mixer.v_proj",
            "attn_output": "mixer.o_proj",
            "ffn_up": "mixer.up_proj",
            "ffn_down": "mixer.down_proj",
            "ffn_gate_inp": "mixer.gate",
            "exp_probs_b.bias": "mixer.gate.e_score_correction_bias",
            "ffn_up_shexp": "mixer.shared_experts.up_proj",
            "ffn_down_shexp": "mixer.shared_experts.down_proj",
            "ffn_latent_down": "mixer.fc1_latent_proj",
            "ffn_latent_up": "mixer.fc2_latent_proj",
        },
        fields=(
            ("head_dim", "attention.key_length"),
            ("layer_norm_epsilon", "attention.layer_norm_rms_epsilon"),
            ("conv_kernel", "ssm.conv_kernel"),
            ("ssm_state_size", "ssm.state_size"),
            ("mamba_num_heads", "ssm.time_step_rank"),
            ("n_groups", "ssm.group_count"),
            ("moe_intermediate_size", "expert_feed_forward_length"),
            ("moe_shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
            ("moe_latent_size", "moe_latent_size"),
            ("routed_scaling_factor", "expert_weights_scale"),
            ("norm_topk_prob", "expert_weights_norm"),
        ),
        experts="mixer.experts",
        expert_count="n_routed_experts",
        prefix="backbone.layers.",
        frame={
            "token_embd": "backbone.embeddings",
            "output_norm": "backbone.norm_f",
            "output": "lm_head",
        },
        # The time step has no lower limit there.
        fixed={"time_step_min": 0.0, "n_group": 1, "topk_group": 1},
        gating=SIGMOID,
        activation="relu2",
        kinds="layers_block_type",
    ),
    Architecture(
        "granitehybrid",
        "granitemoehybrid",
        {
            **_MAMBA,
            "ssm_dt.bias": "mamba.dt_bias",
            "ssm_norm": "mamba.norm",
            "ffn_gate_inp": "block_sparse_moe.router.layer",
            **{
                f"ffn_{part}{end}": f"shared_mlp.{part}_proj"
                for part in ("gate", "up", "down")
                for end in ("", "_shexp")
            },
        },
        fields=(
            ("attention_multiplier", "attention.scale"),
            ("embedding_multiplier", "embedding_scale"),
            ("residual_multiplier", "residual_scale"),
            ("logits_scaling", "logit_scale"),
            ("shared_intermediate_size", "expert_shared_feed_forward_length"),
            ("mamba_d_conv", "ssm.conv_kernel"),
            ("mamba_d_state", "ssm.state_size"),
            ("mamba_n_heads", "ssm.time_step_rank"),
            ("mamba_n_groups", "ssm.group_count"),
        ),
        experts="block_sparse_moe",
        expert_count="num_local_experts",
        banks=INPUT_OUTPUT,
        shared={"shared_mlp": INPUT_OUTPUT},
        fixed={"num_local_experts": 0},
        paired=True,
        kinds="layer_types",
    ),
    # norms_hold_one: the converter adds the one that the model would.
    Architecture(
        "qwen3next",
        "qwen3_next",
        {
            **_QWEN,
            "ssm_in": "linear_attn.in_proj_qkvz",
            "ssm_ba": "linear_attn.in_proj_ba",
        },
        fields=_QWEN_FIELDS,
        rows=("ffn_gate_inp_shexp",),
        fixed={"norm_topk_prob": True, "norms_hold_one": True},
        partial=True,
    ),
    Architecture(
        "qwen35moe",
        "qwen3_5_moe_text",
        {
            **_QWEN,
            "ssm_beta": "linear_attn.in_proj_b",
            "ssm_alpha": "linear_attn.in_proj_a",
        },
        fields=_QWEN_FIELDS,
        rows=("ffn_gate_inp_shexp",),
        fixed={"norms_hold_one": True, "linear_heads_tiled": True},
        partial=True,
    ),
    Architecture(
        "kimi-linear",
        "kimi_linear",
        {
            **LATENT,
            **{f"ssm_conv1d_{part}": f"self_attn.{part}_conv1d" for part in "qkv"},
            **{f"ssm_{part}": f"self_attn.{part}_proj" for part in ("f_a", "f_b", "g_a", "g_b")},
            "ssm_beta": "self_attn.b_proj",
            "ssm_a": "self_attn.A",
            "ssm_dt.bias": "self_attn.dt_bias",
            "ssm_norm": "self_attn.o_norm",
            "ffn_gate_inp": "block_sparse_moe.gate",
            "exp_probs_b.bias": "block_sparse_moe.gate.e_score_correction_bias",
            "ffn_gate_shexp": "block_sparse_moe.shared_experts.gate_proj",
            "ffn_up_shexp": "block_sparse_moe.shared_experts.up_proj",
            "ffn_down_shexp": "block_sparse_moe.shared_experts.down_proj",
        },
        fields=(
            *LATENT_SIZES,
            ("moe_intermediate_size", "expert_feed_forward_length"),
            ("n_shared_experts", "expert_shared_count"),
            ("first_k_dense_replace", "leading_dense_block_count"),
            ("routed_scaling_factor", "expert_weights_scale"),
            ("linear_head_dim", "kda.head_dim"),
            ("linear_conv_kernel_dim", "ssm.conv_kernel"),
        ),
        experts="block_sparse_moe.experts",
        banks=Banks(("w1", "w3", "w2")),
        fixed={"norm_topk_prob": True, "n_group": 1, "topk_group": 1, "q_lora_rank": None},
        gating=SIGMOID,
        latent=True,
        kinds="layer_types",
    ),
)
