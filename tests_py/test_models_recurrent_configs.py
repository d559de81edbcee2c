"""config.json of the families that carry states: older spellings, and what cannot be."""

import shutil
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from family_checks import prompt_of

import moekit as mk

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("qwen3_next", {"layer_types": ["linear_attention"] * 3}, "layer_types is .* 4 layers"),
    ("qwen3_next", {"layer_types": ["sliding"] * 4}, "layer_types is .* linear_attention, full"),
    ("qwen3_next", {"layer_types": "linear"}, "layer_types is 'linear'; a list"),
    ("qwen3_next", {"layer_types": [["full_attention"]] * 4}, "layer_types is"),
    ("qwen3_next", {"linear_num_value_heads": 5}, "linear_num_value_heads is 5; a multiple of"),
    ("qwen3_next", {"linear_conv_kernel_dim": 65}, "linear_conv_kernel_dim is 65; .* 1 to 64"),
    ("qwen3_next", {"linear_key_head_dim": 2**40}, "linear_key_head_dim is"),
    ("qwen3_next", {"linear_key_head_dim": 2**30}, "in_proj_qkvz.weight has shape"),
    ("qwen3_next", {"full_attention_interval": 0, "layer_types": None}, "full_attention_interval"),
    ("jamba", {"attn_layer_offset": 3}, "attn_layer_offset is 3; less than attn_layer_period, 3"),
    ("jamba", {"mamba_dt_rank": "wide"}, "mamba_dt_rank is 'wide'; an integer"),
    ("jamba", {"mamba_d_state": 10**9}, "x_proj.weight has shape"),
    ("jamba", {"mamba_expand": 2**30}, "mamba_expand is"),
    ("granitemoehybrid", {"time_step_limit": [2, 1]}, "time_step_limit is"),
    ("granitemoehybrid", {"time_step_limit": [0, {"__float__": "NaN"}]}, "time_step_limit is"),
    ("granitemoehybrid", {"mamba_n_heads": 7}, "mamba_n_heads is 7; a divisor of 144"),
    ("granitemoehybrid", {"mamba_n_groups": 4}, "mamba_n_groups is 4; a divisor of the 6 heads"),
    ("granitemoehybrid", {"position_embedding_type": "alibi"}, "position_embedding_type is"),
    ("nemotron_h", {"layers_block_type": [3] * 6}, "layers_block_type is"),
    ("nemotron_h", {"layers_block_type": []}, "layers_block_type is"),
    (
        "nemotron_h",
        {"layers_block_type": None, "hybrid_override_pattern": "ME*X"},
        "hybrid_override_pattern is 'ME.X'; a letter of",
    ),
    ("nemotron_h", {"time_step_min": -1.0}, "time_step_min is -1"),
    ("nemotron_h", {"mlp_hidden_act": "tanh"}, "mlp_hidden_act is 'tanh'"),
    ("nemotron_h", {"n_groups": 5}, "n_groups is 5; a divisor of the 6 heads"),
    ("lfm2_moe", {"conv_L_cache": 0}, "conv_L_cache is 0"),
    ("lfm2_moe", {"layer_types": None}, "layer_types is missing"),
    (
        "kimi_linear",
        {
            "layer_types": None,
            "linear_attn_config": {
                "full_attn_layers": [2],
                "kda_layers": [1],
                "head_dim": 10,
                "num_heads": 4,
            },
        },
        "full_attn_layers is .* each of 3 layers",
    ),
    ("kimi_linear", {"mlp_layer_types": ["dense"]}, "mlp_layer_types is"),
    ("bailing_hybrid", {"kda_lower_bound": 1.0}, "kda_lower_bound is 1"),
    ("gemma4_text", {"enable_moe_block": False}, "enable_moe_block is False; true"),
    ("gemma4_text", {"num_kv_shared_layers": 1}, "num_kv_shared_layers is 1; 0 beside experts"),
    ("gemma4_text", {"per_layer_config": {"1": {"head_dim": 25}}}, "head_dim is 25; an even"),
    ("gemma4_text", {"per_layer_config": [1]}, r"per_layer_config is \[1\]; an object"),
    ("minimax", {"mlp_beta_factor": "1"}, "mlp_beta_factor is '1'"),
]


@pytest.mark.parametrize(("family", "changes", "message"), BAD)
def test_a_wrong_field_is_named(
    checkpoint_maker: Any, tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "model"
    shutil.copytree(checkpoint_maker(family, 0)[1], path)
    checkpoints.rewrite_config(path, **changes)
    with pytest.raises(mk.FileError, match=message):
        mk.load(path)


SAME: list[tuple[str, dict[str, Any]]] = [
    ("jamba", {"mamba_dt_rank": 5}),  # what "auto" gives
    ("granitemoehybrid", {"layer_types": ["mamba", "attention", "mamba"]}),
    (
        "granitemoehybrid",
        {"layer_types": None, "layers_block_type": ["mamba", "attention", "mamba"]},
    ),
    ("granitemoehybrid", {"time_step_limit": [0.0, float("inf")]}),
    ("granitemoehybrid", {"time_step_limit": None, "position_embedding_type": "nope"}),
    ("nemotron_h", {"layers_block_type": None, "hybrid_override_pattern": "ME*-ME"}),
    (
        "kimi_linear",
        {
            "layer_types": None,
            "mlp_layer_types": None,
            "linear_head_dim": None,
            "linear_num_heads": None,
            "linear_conv_kernel_dim": None,
            "first_k_dense_replace": 1,
            "linear_attn_config": {
                "full_attn_layers": [2, 4],
                "kda_layers": [1, 3],
                "head_dim": 10,
                "num_heads": 4,
                "short_conv_kernel_size": 4,
            },
        },
    ),
    ("lfm2_moe", {"tie_word_embeddings": None, "tie_embedding": True}),
    ("gemma4_text", {"per_layer_config": None, "global_head_dim": 24}),
]


@pytest.mark.parametrize(("family", "changes"), SAME)
def test_older_spellings_mean_the_same(
    checkpoint_maker: Any, tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    source, path = checkpoint_maker(family, 0)[1], tmp_path / "model"
    shutil.copytree(source, path)
    checkpoints.rewrite_config(path, **changes)
    ids = prompt_of(1, 9)
    assert mk.load(path).forward(ids).tobytes() == mk.load(source).forward(ids).tobytes()


def test_minimax_may_have_a_window(checkpoint_maker: Any) -> None:
    """Logits alone: with it transformers' generation disagrees with its own logits."""
    theirs, path = checkpoint_maker("minimax", 3, sliding_window=4)
    ids = prompt_of(5, 23)
    expected = checkpoints.their_logits(theirs, ids)
    np.testing.assert_allclose(mk.load(path).forward(ids), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("family", ["qwen3_next", "nemotron_h"])
def test_layers_for_multi_token_prediction_are_left_out(
    checkpoint_maker: Any, tmp_path: Path, family: str
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    source, path = checkpoint_maker(family, 0)[1], tmp_path / "model"
    shutil.copytree(source, path)
    tensors = load_file(path / "model.safetensors")
    save_file({**tensors, "mtp.layers.0.norm.weight": torch.ones(3)}, path / "model.safetensors")
    ids = prompt_of(1, 9)
    assert mk.load(path).forward(ids).tobytes() == mk.load(source).forward(ids).tobytes()
    save_file({**tensors, "extra.weight": torch.ones(3)}, path / "model.safetensors")
    with pytest.raises(mk.FileError, match=r"unexpected tensors extra\.weight"):
        mk.load(path)
