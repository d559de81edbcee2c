"""Every family against transformers: logits, experts, greedy tokens; odd sizes throughout."""

from typing import Any

import checkpoints
import family_checks
import numpy as np
import pytest
from family_checks import prompt_of

import moekit as mk
from moekit import _core

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "mscale": 0.7,
    "mscale_all_dim": 1.3,
    "beta_fast": 32,
    "beta_slow": 1,
    "original_max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("mixtral", {}),
    ("mixtral", {"num_experts_per_tok": 5}),
    ("mixtral", {"num_experts_per_tok": 1, "num_local_experts": 1}),
    ("mixtral", {"sliding_window": 4}),
    ("mixtral", {"tie_word_embeddings": True, "num_key_value_heads": 3, "head_dim": 10}),
    ("mixtral", {"num_attention_heads": 6, "num_key_value_heads": 2, "rope_parameters": LLAMA3}),
    ("mixtral", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {"norm_topk_prob": False, "attention_bias": True}),
    ("qwen3_moe", {"mlp_only_layers": [1], "tie_word_embeddings": True}),
    ("qwen3_moe", {"decoder_sparse_step": 2, "rms_norm_eps": 1e-2}),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 5}),
    (
        "qwen3_moe",
        {"rope_parameters": {k: v for k, v in YARN.items() if not k.startswith("mscale")}},
    ),
    ("deepseek_v2", {}),
    ("deepseek_v2", {"q_lora_rank": None, "rope_parameters": YARN}),
    ("deepseek_v2", {"routed_scaling_factor": 3.0, "norm_topk_prob": True, "n_group": 4}),
    (
        "deepseek_v2",
        {
            "topk_method": "group_limited_greedy",
            "n_routed_experts": 12,
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 3,
            "rms_norm_eps": 3e-2,
            "attention_bias": True,
        },
    ),
    ("deepseek_v3", {}),
    ("deepseek_v3", {"q_lora_rank": None, "tie_word_embeddings": True}),
    ("deepseek_v3", {"rope_parameters": YARN}),
    ("deepseek_v3", {"rms_norm_eps": 3e-2, "attention_bias": True, "rope_interleave": False}),
    (
        "deepseek_v3",
        {"n_routed_experts": 12, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
    ),
    ("deepseek_v3", {"norm_topk_prob": False, "routed_scaling_factor": 1.7}),
    ("deepseek_v3", {"first_k_dense_replace": 0, "n_shared_experts": 2}),
    ("deepseek_v3", {"first_k_dense_replace": 3}),
]
NAMES = [f"{family}-{'-'.join(changes) or 'plain'}" for family, changes in CASES]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("family", "changes"), CASES, ids=NAMES)
def test_logits_and_experts_are_those_of_transformers(
    checkpoint_maker: Any, family: str, changes: dict[str, Any], seed: int
) -> None:
    family_checks.logits_and_experts(*checkpoint_maker(family, seed, **changes), seed)


@pytest.mark.parametrize(("family", "changes"), CASES, ids=NAMES)
def test_greedy_tokens_are_those_of_transformers(
    checkpoint_maker: Any, family: str, changes: dict[str, Any]
) -> None:
    family_checks.greedy_tokens(*checkpoint_maker(family, 1, **changes))


@pytest.mark.parametrize(("family", "changes"), CASES, ids=NAMES)
def test_a_token_has_the_same_bytes_however_it_is_batched(
    checkpoint_maker: Any, family: str, changes: dict[str, Any]
) -> None:
    family_checks.same_bytes(checkpoint_maker(family, 0, **changes)[1])


@pytest.mark.parametrize("family", list(checkpoints.FAMILIES))
@pytest.mark.parametrize("format", mk.ops.format_names())
def test_every_format_keeps_a_tokens_bytes(checkpoint_maker: Any, family: str, format: str) -> None:
    _, path = checkpoint_maker(family, 1)
    model = mk.load(path, format=format)
    prompts = [prompt_of(4, 11), prompt_of(5, 3)]
    alone = [model.forward(prompt).tobytes() for prompt in prompts]
    assert [logits.tobytes() for logits in model.forward(prompts)] == alone
    cache = model.new_cache()
    parts = [model.forward(prompts[0][a:b], cache=cache) for a, b in ((0, 1), (1, 9), (9, 11))]
    assert np.concatenate(parts).tobytes() == alone[0]
    threads = _core.num_threads()
    try:
        for count in (1, 3):
            _core.set_num_threads(count)
            assert model.forward(prompts[0]).tobytes() == alone[0]
    finally:
        _core.set_num_threads(threads)


def test_a_batch_continues_with_its_cache_and_forks(checkpoint_maker: Any) -> None:
    _, path = checkpoint_maker("deepseek_v3", 0)
    model = mk.load(path)
    first, second = prompt_of(1, 8), prompt_of(2, 3)
    cache = model.new_cache()
    model.forward([first, second], cache=cache)
    assert cache.lengths == [8, 3]
    fork = cache.fork()
    left = model.forward([[5, 6], [7]], cache=cache)
    right = model.forward([[9], [10, 11]], cache=fork)
    assert left[0].tobytes() == model.forward([*first, 5, 6])[-2:].tobytes()
    assert left[1].tobytes() == model.forward([*second, 7])[-1:].tobytes()
    assert right[0].tobytes() == model.forward([*first, 9])[-1:].tobytes()
    assert right[1].tobytes() == model.forward([*second, 10, 11])[-2:].tobytes()
    assert cache.lengths == [10, 4]
    assert fork.lengths == [9, 5]


def test_a_cut_cache_goes_on_as_if_nothing_had_been(checkpoint_maker: Any) -> None:
    _, path = checkpoint_maker("qwen3_moe", 0)
    model = mk.load(path)
    ids = prompt_of(3, 10)
    cache = model.new_cache()
    model.forward([*ids, 1, 2, 3], cache=cache)
    cache.truncate(10)
    assert model.forward([42], cache=cache).tobytes() == model.forward([*ids, 42])[-1:].tobytes()
