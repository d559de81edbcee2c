"""GGUF architectures whose layers differ in kind: states here, attention there. They are read, not
written: the files hold -e^A_log, and say which layer is which by arrays and by what is there.
"""

from .gguf_architectures import SIGMOID, Architecture, Banks

_STATES = {
    "ssm_in": "in_proj",
    "ssm_conv1d": "conv1d",
    "ssm_a": "A",
    "ssm_d": "D",
    "ssm_out": "out_proj",
}
_MAMBA = {f"{name}": f"mamba.{part}" for name, part in _STATES.items()}
_MIXER = {f"{name}": f"mixer.{part}" for name, part in _STATES.items()}

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
        "lfm2moe",
        "lfm2_moe",
        {
            "attn_norm": "operator_norm",
            "attn_output": "self_attn.out_proj",
            "attn_q_norm": "self_attn.q_layernorm",
            "attn_k_norm": "self_attn.k_layernorm",
            "shortconv.conv": "conv.conv",
            "shortconv.in_proj": "conv.in_proj",
            "shortconv.out_proj": "conv.out_proj",
            "ffn_norm": "ffn_norm",
            "ffn_gate": "feed_forward.w1",
            "ffn_up": "feed_forward.w3",
            "ffn_down": "feed_forward.w2",
            "ffn_gate_inp": "feed_forward.gate",
            "exp_probs_b.bias": "feed_forward.expert_bias",
        },
        fields=(
            ("moe_intermediate_size", "expert_feed_forward_length"),
            ("num_dense_layers", "leading_dense_block_count"),
            ("conv_L_cache", "shortconv.l_cache"),
            ("norm_eps", "attention.layer_norm_rms_epsilon"),
        ),
        experts="feed_forward.experts",
        banks=Banks(("w1", "w3", "w2")),
        frame={
            "token_embd": "model.embed_tokens",
            "token_embd_norm": "model.embedding_norm",
            "output": "lm_head",
        },
        fixed={"norm_topk_prob": True, "use_expert_bias": True},
        gating=SIGMOID,
        kinds="layer_types",
        recurrent="conv",
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
        kinds="layers_block_type",
    ),
)
