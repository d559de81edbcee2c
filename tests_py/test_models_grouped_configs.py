"""config.json as it was written before transformers 5, and as it stands on the hub."""

import json
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import transformers
from family_checks import TOLERANCE, prompt_of
from grouped_families import CASES, FULL, LONGROPE, SLIDING

import moekit as mk

# Their rotation is described by layer type, which the older spelling cannot say.
BY_TYPE = ("mellum", "laguna", "mimo_v2_flash")
# Where files before transformers 5 have something, but no list for each layer.
LISTS = ("layer_types", "mlp_layer_types", "layer_rope_theta")


def legacy(fields: dict[str, Any], kept: set[str]) -> dict[str, Any]:
    """The same configuration in the older spelling; lists that are not in `kept` left out."""
    rope = dict(fields["rope_parameters"])
    old = {k: v for k, v in fields.items() if k not in LISTS or k in kept}
    del old["rope_parameters"]
    old["torch_dtype"] = old.pop("dtype")
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            old[name] = rope.pop(name)
    kind = rope.pop("rope_type")
    old["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    return old


OLD = [case for case in CASES if case[0] not in BY_TYPE]


@pytest.mark.parametrize(
    ("family", "changes"), OLD, ids=[f"{family}-{'-'.join(c) or 'plain'}" for family, c in OLD]
)
def test_the_older_spelling_means_the_same(
    checkpoint_maker: Any, tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    _, path = checkpoint_maker(family, 0, **changes)
    ids = prompt_of(1, 23)
    new = mk.load(path).forward(ids)
    copy = Path(shutil.copytree(path, tmp_path / "copy"))
    fields = json.loads((copy / "config.json").read_text())
    # Transformers turns this one into lists of layers and does not write it.
    first = {k: v for k, v in changes.items() if k == "first_k_dense_replace"}
    (copy / "config.json").write_text(json.dumps({**legacy(fields, set(changes)), **first}))
    assert mk.load(copy).forward(ids).tobytes() == new.tobytes()


# Fields of published files, their sizes made small; numbers that matter are theirs.
PUBLISHED: dict[str, dict[str, Any]] = {
    "mixtral": {  # Mixtral-8x22B
        "architectures": ["MixtralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 96,
        "initializer_range": 0.2,
        "intermediate_size": 64,
        "max_position_embeddings": 65536,
        "model_type": "mixtral",
        "num_attention_heads": 12,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "output_router_logits": False,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0.dev0",
        "use_cache": True,
        "vocab_size": 97,
    },
    "qwen2_moe": {  # Qwen1.5-MoE-A2.7B
        "architectures": ["Qwen2MoeForCausalLM"],
        "decoder_sparse_step": 1,
        "hidden_act": "silu",
        "hidden_size": 72,
        "initializer_range": 0.2,
        "intermediate_size": 56,
        "max_position_embeddings": 8192,
        "max_window_layers": 21,
        "model_type": "qwen2_moe",
        "moe_intermediate_size": 40,
        "norm_topk_prob": False,
        "num_attention_heads": 3,
        "num_experts": 6,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "shared_expert_intermediate_size": 56,
        "sliding_window": 4,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": 97,
    },
    "glm4_moe": {  # GLM-4.5-Air
        "attention_bias": True,
        "first_k_dense_replace": 1,
        "head_dim": 20,
        "hidden_act": "silu",
        "hidden_size": 72,
        "initializer_range": 0.2,
        "intermediate_size": 56,
        "max_position_embeddings": 131072,
        "model_type": "glm4_moe",
        "moe_intermediate_size": 40,
        "n_group": 1,
        "n_routed_experts": 6,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "num_nextn_predict_layers": 0,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "routed_scaling_factor": 1.0,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "torch_dtype": "bfloat16",
        "use_qk_norm": False,
        "vocab_size": 97,
    },
    "gpt_oss": {  # gpt-oss-20b
        "attention_bias": True,
        "experts_per_token": 4,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 72,
        "initial_context_length": 4096,
        "initializer_range": 0.2,
        "intermediate_size": 72,
        "layer_types": ["sliding_attention", "full_attention"],
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_attention_heads": 8,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 6,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "sliding_window": 4,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "vocab_size": 97,
    },
    "minimax_m2": {  # MiniMax-M2
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 72,
        "initializer_range": 0.2,
        "intermediate_size": 40,
        "max_position_embeddings": 196608,
        "model_type": "minimax_m2",
        "num_attention_heads": 4,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 6,
        "qk_norm_type": "per_layer",
        "rms_norm_eps": 1e-06,
        "rope_theta": 5000000,
        "rotary_dim": 16,
        "scoring_func": "sigmoid",
        "shared_intermediate_size": 0,
        "tie_word_embeddings": False,
        "use_qk_norm": True,
        "use_routing_bias": True,
        "vocab_size": 97,
    },
    "phimoe": {  # Phi-3.5-MoE-instruct
        "attention_bias": True,
        "hidden_act": "silu",
        "hidden_size": 72,
        "initializer_range": 0.2,
        "input_jitter_noise": 0.01,
        "intermediate_size": 40,
        "lm_head_bias": True,
        "max_position_embeddings": 256,
        "model_type": "phimoe",
        "num_attention_heads": 3,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "num_local_experts": 6,
        "original_max_position_embeddings": 64,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "long_factor": LONGROPE["long_factor"],
            "long_mscale": 1.243163121016122,
            "original_max_position_embeddings": 64,
            "short_factor": LONGROPE["short_factor"],
            "short_mscale": 1.243163121016122,
            "type": "longrope",
        },
        "rope_theta": 10000.0,
        "router_jitter_noise": 0.01,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "vocab_size": 97,
    },
    "hunyuan_v1_moe": {  # Hunyuan-A13B-Instruct
        "attention_bias": False,
        "attention_head_dim": 24,
        "head_dim": 24,
        "hidden_act": "silu",
        "hidden_size": 72,
        "initializer_range": 0.2,
        "intermediate_size": 40,
        "max_position_embeddings": 32768,
        "model_type": "hunyuan_v1_moe",
        "moe_intermediate_size": [40, 40],
        "moe_topk": [3, 3],
        "num_attention_heads": 3,
        "num_experts": 6,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "num_shared_expert": [1, 1],
        "pad_token_id": None,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "use_qk_norm": True,
        "vocab_size": 97,
    },
}


@pytest.mark.parametrize("family", list(PUBLISHED))
def test_published_fields_are_understood_as_transformers_does(family: str, tmp_path: Path) -> None:
    fields = PUBLISHED[family]
    (tmp_path / "as_published").mkdir()
    (tmp_path / "as_published" / "config.json").write_text(json.dumps(fields))
    config = transformers.AutoConfig.from_pretrained(tmp_path / "as_published")
    config.dtype = "float32"
    theirs = checkpoints.random_model(config, 3, "AutoModelForCausalLM")
    path = checkpoints.save(theirs, tmp_path / "model")
    # The tensors as transformers 5 writes them, beside the file as it was published.
    (path / "config.json").write_text(json.dumps(fields))
    ids = prompt_of(4, 29)
    logits = mk.load(path).forward(ids)
    expected = checkpoints.their_logits(theirs, ids)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


def test_dbrx_calls_its_context_length_otherwise(checkpoint_maker: Any) -> None:
    settings = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 9000.0}
    theirs, path = checkpoint_maker("dbrx", 3, rope_parameters=settings, max_seq_len=16)
    ids = prompt_of(5, 13)
    expected = checkpoints.their_logits(theirs, ids)
    np.testing.assert_allclose(mk.load(path).forward(ids), expected, rtol=0, atol=TOLERANCE)


_HALF = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
_STRETCHED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        # Whole heads rotate, whatever the field says.
        ("qwen3_moe", {"partial_rotary_factor": 0.5}),
        ("bailing_hybrid", {"rope_parameters": _HALF}),
        ("gemma4_text", {"rope_parameters": {SLIDING: _HALF, FULL: _HALF}}),
        (
            "gemma4_text",
            {"rope_parameters": {SLIDING: _HALF, FULL: {**_HALF, "rope_type": "proportional"}}},
        ),
        # A third where the kind is plain, all of a head where it is not.
        ("mimo_v2_flash", {"rope_parameters": {SLIDING: _STRETCHED, FULL: _STRETCHED}}),
        ("laguna", {"rope_parameters": {SLIDING: _STRETCHED, FULL: _HALF}}),
    ],
)
def test_the_part_of_a_head_that_rotates_is_transformers(
    checkpoint_maker: Any, tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    theirs, path = checkpoint_maker(family, 2, **changes)
    ids = prompt_of(6, 15)
    model = mk.load(path)
    logits = model.forward(ids)
    expected = checkpoints.their_logits(theirs, ids)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)
    if family == "qwen3_moe":  # and a file for llama.cpp says so
        model.save(tmp_path / "model.gguf")
        again = mk.load(tmp_path / "model.gguf").forward(ids)
        np.testing.assert_allclose(again, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("mixtral", {**_STRETCHED, "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("glm4_moe", {"rope_type": "dynamic", "factor": 2.0}, "rope_type is 'dynamic'; another"),
    ],
)
def test_a_part_without_a_meaning_is_refused(
    checkpoint_maker: Any, tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    _, path = checkpoint_maker(family)
    copy = Path(shutil.copytree(path, tmp_path / "copy"))
    section = {"rope_theta": 500.0, "partial_rotary_factor": 0.1, **changes}
    checkpoints.rewrite_config(copy, rope_parameters=section)
    with pytest.raises(mk.FileError, match=message):
        mk.load(copy)
