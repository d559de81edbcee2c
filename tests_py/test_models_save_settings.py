"""What the keys of a GGUF file can say of a family's settings: it is kept, or named and refused."""

import os
from pathlib import Path
from typing import Any

import checkpoints
import grouped_families
import llama_cpp_oracle
import numpy as np
import pytest
import test_models_families
import test_models_gguf
from saved_families import BOTH, CHANGES, IDS, MODULES

import moekit as mk

YARN_4 = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 64,
}
PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.682}
ODD = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
LLAMA_3 = grouped_families.LLAMA3
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}


def test_what_gguf_cannot_say_is_refused(checkpoint_maker: Any, tmp_path: Path) -> None:
    for family, changes, named in (
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers"),
        ("flex_olmo", {}, "flex_olmo"),
    ):
        model = mk.load(checkpoint_maker(family, 0, **changes)[1])
        with pytest.raises(ValueError, match=named):
            model.save(tmp_path / "x.gguf")
        assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "family", ["deepseek_v2", "deepseek_v3", "glm4_moe", "dots1", "exaone_moe"]
)
def test_what_a_config_leaves_out_is_written(
    checkpoint_maker: Any, tmp_path: Path, family: str
) -> None:
    more = {"n_routed_experts": 16} if family == "deepseek_v3" else {}
    _, source = checkpoint_maker(family, 4, **{**CHANGES.get(family, {}), **more})
    with_all = mk.load(source).config
    for name in ("norm_topk_prob", "routed_scaling_factor", "n_group", "topk_group"):
        if name in with_all:
            checkpoints.rewrite_config(source, **{name: None})
    model = mk.load(source)
    model.save(tmp_path / "x.gguf")
    assert mk.load(tmp_path / "x.gguf").forward(IDS).tobytes() == model.forward(IDS).tobytes()


PROPORTIONAL = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    "full_attention": {
        "rope_type": "proportional",
        "partial_rotary_factor": 30 / 44,
        "rope_theta": 3e4,
    },
}
# What a file of the family can say beside its plain kind, where the cases below do not say it.
_SAID: list[tuple[str, dict[str, Any]]] = [
    ("cohere2_moe", {"expert_selection_fn": "softmax", "num_shared_experts": 1}),
    ("granitemoe_swa", {"layer_rope_theta": [0, 2e4, 2e4], "attention_bias": True}),
    ("gemma4_text", {"global_head_dim": 44, "rope_parameters": PROPORTIONAL}),
    ("gemma4_text", {"attention_k_eq_v": True, "num_global_key_value_heads": 3}),
    ("gemma4_text", {"hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 97}),
    ("deepseek_v4", {**CHANGES["deepseek_v4"], "rope_parameters": YARN_4}),
    ("glm4_moe", {"rope_parameters": PARTIAL, "head_dim": 44}),
    ("ernie4_5_moe", {"head_dim": 10}),
    ("qwen2_moe", {"tie_word_embeddings": True}),
    ("olmoe", {"tie_word_embeddings": True, "num_key_value_heads": 3}),
    ("gpt_oss", {**CHANGES["gpt_oss"], "tie_word_embeddings": True}),
    ("exaone_moe", {"num_shared_experts": 3}),
    ("hy_v3", {"num_shared_experts": 0}),
    ("glm4_moe", {"n_routed_experts": 12, "n_group": 3, "topk_group": 3}),
]


@pytest.mark.parametrize(("family", "changes"), _SAID)
def test_what_a_file_can_say(
    checkpoint_maker: Any, tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    model = mk.load(checkpoint_maker(family, 1, **changes)[1])
    model.save(tmp_path / "x.gguf")
    wanted = model.forward(IDS).tobytes()
    found = mk.load(tmp_path / "x.gguf")
    assert found.forward(IDS).tobytes() == wanted
    found.save(tmp_path / "out")
    assert mk.load(tmp_path / "out").forward(IDS).tobytes() == wanted


def agrees_with_llama_cpp(model: Any, path: Path) -> None:
    """Where llama-cpp-python is installed."""
    if llama_cpp_oracle.find() is not None:
        answer = llama_cpp_oracle.ask(path, ids=IDS, count=6)
        np.testing.assert_allclose(model.forward(IDS), answer["logits"], rtol=0, atol=2e-3)
        assert model.generate(IDS, max_new_tokens=6) == answer["greedy"]


@pytest.mark.parametrize("family", ["mixtral", "granitemoe", "exaone_moe"])
def test_llama_3_scaling_is_a_table_of_factors(
    checkpoint_maker: Any, tmp_path: Path, family: str
) -> None:
    changes = {"num_key_value_heads": 3, "rope_parameters": LLAMA_3}
    model = mk.load(checkpoint_maker(family, 1, **changes)[1])
    model.save(tmp_path / "x.gguf")
    found = mk.load(tmp_path / "x.gguf")
    # Factors are quotients in float32.
    np.testing.assert_allclose(found.forward(IDS), model.forward(IDS), rtol=0, atol=1e-4)
    agrees_with_llama_cpp(found, tmp_path / "x.gguf")


def test_a_dense_hybrid_has_plain_names(checkpoint_maker: Any, tmp_path: Path) -> None:
    changes = {"num_local_experts": 0, "shared_intermediate_size": 44}
    model = mk.load(checkpoint_maker("granitemoehybrid", 1, **changes)[1])
    model.save(tmp_path / "x.gguf")
    assert mk.load(tmp_path / "x.gguf").forward(IDS).tobytes() == model.forward(IDS).tobytes()
    agrees_with_llama_cpp(model, tmp_path / "x.gguf")


# Settings that no key exists for, which only the comparison with what the file means finds.
_UNSAID: list[tuple[str, dict[str, Any], str]] = [
    ("deepseek_v3", {"attention_bias": True}, "attn_q_a.bias|attn_kv_a_mqa.bias"),
    ("deepseek_v3", {"n_shared_experts": 0}, "there is no shared expert"),
    ("deepseek_v3", {"rope_parameters": LINEAR}, "rope_type is linear"),
    ("deepseek_v3", {"rope_parameters": YARN_4}, "yarn without mscale_all_dim"),
    ("qwen3_moe", {"attention_bias": True}, "attn_output.bias"),
    ("qwen2_moe", {"head_dim": 10}, "qwen2moe cannot say"),
    ("olmoe", {"num_key_value_heads": 1}, "num_key_value_heads is 1"),
    ("cohere2_moe", {"layer_types": ["full_attention"] * 3}, "no layer has a window"),
    ("glm4_moe", {"head_dim": 26, "rope_parameters": ODD}, "13 dimensions rotate"),
    ("jamba", {"mamba_expand": 1}, "mamba_expand is 1"),
    ("deepseek_v4", {**CHANGES["deepseek_v4"], "hc_mult": 2}, "hc_mult is 2"),
    ("deepseek_v4", {"layer_types": ["sliding_attention"] * 3}, "a window alone"),
    ("solar_open", {"n_shared_experts": 0}, "there is no shared expert"),
    ("olmoe", {"num_key_value_heads": 3, "rope_parameters": LLAMA_3}, "rope_freqs.weight"),
    ("granitemoehybrid", {"layer_types": ["full_attention"] * 3}, "all layers are of one kind"),
    ("kimi_linear", {"linear_num_heads": 3, "q_lora_rank": 6}, "q_lora_rank is 6"),
    ("glm4_moe_lite", {"rope_interleave": False}, "rope_interleave"),
    ("mixtral", {"hidden_act": "gelu"}, "activation is 'gelu'"),
    ("phimoe", {"attention_bias": False}, "attention_bias"),
    ("dots1", {"sliding_window": 4, "layer_types": None, "max_window_layers": 1}, "layer_types"),
    ("minimax", {"mlp_alpha_factor": 1.5}, "factors of the stream"),
    ("minimax", {"full_attn_beta_factor": 0.5}, "factors of the stream"),
    ("minimax", {"sliding_window": 4}, "sliding_window"),
    ("minimax_m3_vl_text", {"swiglu_limit": 7.0}, "layer_types"),
    ("deepseek_v4", {}, "compress_rates"),
    ("granitemoe_swa", {"layer_rope_theta": [1e4, 2e4, 2e4]}, "layer_rope_theta"),
    ("olmoe", {"num_key_value_heads": 3, "clip_qkv": 0.7}, "clip_qkv is 0.7"),
    ("ernie4_5_moe", {"moe_norm_min": 0.6}, "gate._rule.normalize_min is 0.6"),
    ("mistral4", {**CHANGES.get("mistral4", {}), "q_lora_rank": None}, "q_lora_rank is null"),
    ("deepseek_v3", {"n_group": 1, "q_lora_rank": None}, "q_lora_rank is null"),
    ("qwen3_next", {"linear_value_head_dim": 14}, "linear_value_head_dim is 14"),
    ("qwen3_5_moe_text", {"linear_value_head_dim": 14}, "linear_value_head_dim is 14"),
]


@pytest.mark.parametrize(("family", "changes", "named"), _UNSAID)
def test_what_a_file_cannot_say_is_named(
    checkpoint_maker: Any, tmp_path: Path, family: str, changes: dict[str, Any], named: str
) -> None:
    model = mk.load(checkpoint_maker(family, 1, **changes)[1])
    with pytest.raises(ValueError, match=named):
        model.save(tmp_path / "x.gguf")
    assert not os.listdir(tmp_path)


_ABSURD: list[tuple[str, str, Any]] = [
    ("granitemoeshared", "granitemoe.expert_shared_feed_forward_length", np.array([], np.int32)),
    ("granitemoeshared", "granitemoe.expert_shared_feed_forward_length", np.full(3, np.nan)),
    ("glm4_moe_lite", "deepseek2.expert_gating_func", np.full(5000, 7, np.int32)),
    ("granitemoe_swa", "granite_swa.block_count", 2**32 - 1),
    ("granitemoe_swa", "granite_swa.attention.rope_pattern", np.ones(2, np.bool_)),
    ("gemma4_text", "gemma4.block_count", 2**32 - 1),
    ("gemma4_text", "gemma4.attention.head_count_kv", np.full(3, -1, np.int32)),
    ("gemma4_text", "gemma4.attention.key_length_swa", 2**32 - 1),
    ("gemma4_text", "gemma4.attention.shared_kv_layers", 2),
    ("deepseek_v4", "deepseek4.attention.compress_ratios", np.array([0, 4, 3], np.int32)),
    ("deepseek_v4", "deepseek4.attention.compress_ratios", np.zeros(2, np.int32)),
    ("deepseek_v4", "deepseek4.block_count", 2**32 - 1),
    ("minimax", "minimax-01.attention.recurrent_layers", 2**32 - 1),
    ("minimax", "minimax-01.block_count", 2**32 - 1),
    ("minimax", "minimax-01.residual_scale", "1"),
    ("minimax_m3_vl_text", "minimax-m3.expert_shared_count", 2**32 - 1),
    ("minimax_m3_vl_text", "minimax-m3.block_count", 0),
]


@pytest.mark.parametrize(("family", "key", "value"), _ABSURD)
def test_absurd_keys_of_a_file(
    checkpoint_maker: Any, tmp_path: Path, family: str, key: str, value: Any
) -> None:
    model = mk.load(checkpoint_maker(family, 4, **CHANGES.get(family, {}))[1])
    model.save(tmp_path / "x.gguf")
    bad = test_models_gguf.rewrite(tmp_path / "x.gguf", tmp_path / "bad.gguf", **{key: value})
    with pytest.raises(mk.FileError):
        mk.load(bad)


VARIANTS = [
    (family, changes)
    for module in (test_models_families, *MODULES)
    for family, changes in module.CASES
    if family in BOTH
]


@pytest.mark.parametrize(
    ("family", "changes"), VARIANTS, ids=[f"{f}-{'-'.join(c)}" for f, c in VARIANTS]
)
def test_a_setting_is_kept_or_refused(
    checkpoint_maker: Any, tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    model = mk.load(checkpoint_maker(family, 1, **changes)[1])
    try:
        model.save(tmp_path / "x.gguf")
    except ValueError as error:
        assert "[save]" in str(error)  # noqa: PT017 - either is right, silence is not
        assert not os.listdir(tmp_path)
        return
    found = mk.load(tmp_path / "x.gguf").forward(IDS)
    assert found.tobytes() == model.forward(IDS).tobytes()
