"""plan_model's arguments, formats, cache, work and errors."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from planner_models import MIXTRAL

from moekit.planner import (
    FORMATS,
    ModelPlan,
    break_even_utilisation,
    catalog,
    distinct_experts,
    find_machine,
    load_machines,
    machines,
    plan_model,
)


def test_small_mixtral_by_hand() -> None:
    plan = plan_model(MIXTRAL)
    attention = 128 * 128 * 2 + 64 * 128 * 2
    expert = 3 * 128 * 256
    norms, router = 2 * 128, 8 * 128
    layer = attention + 8 * expert + norms + router
    assert plan.total_params == 4 * layer + 128 + 2 * 320 * 128
    active = 4 * (layer - 6 * expert) + 128 + 2 * 320 * 128
    assert plan.active_params == active
    assert plan.flops_per_token == 2 * (active - 320 * 128 - 4 * norms - 128)
    assert plan.kv_elements_per_token == 4 * 2 * 64


# -- where a configuration comes from -----------------------------------------------------------


def test_path_directory_and_mapping_agree(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    expected = plan_model(MIXTRAL).total_params
    assert plan_model(tmp_path).total_params == expected
    assert plan_model(str(tmp_path / "config.json")).total_params == expected


@pytest.mark.parametrize(
    "name", ["deepseek-v3", "DeepSeek-V3", "deepseek v3", "DEEPSEEK_V3", "deepseek-ai/DeepSeek-V3"]
)
def test_names_in_any_case(name: str) -> None:
    assert plan_model(name).total_params == 671_026_404_352


@pytest.mark.parametrize(
    ("hub", "name"),
    [
        ("deepseek-ai/DeepSeek-V2-Chat", "deepseek-v2"),
        ("deepseek-ai/DeepSeek-V2-Lite-Chat", "deepseek-v2-lite"),
        ("deepseek-ai/deepseek-moe-16b-chat", "deepseek-moe-16b"),
        ("deepseek-ai/DeepSeek-V3.1-Terminus", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-r1"),
        ("deepseek-ai/DeepSeek-V3.2-Exp", "deepseek-v3.2"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("mistralai/Mixtral-8x22B-Instruct-v0.1", "mixtral-8x22b"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama-4-scout"),
        ("meta-llama/Llama-4-Maverick-17B-128E", "llama-4-maverick"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b"),
        ("Qwen/Qwen3-235B-A22B-Thinking-2507", "qwen3-235b-a22b"),
        ("allenai/OLMoE-1B-7B-0924-Instruct", "olmoe-1b-7b"),
        ("openai/gpt-oss-120b", "gpt-oss-120b"),
        ("zai-org/GLM-4.5-Air-Base", "glm-4.5-air"),
        ("moonshotai/Kimi-K2-Thinking", "kimi-k2"),
        ("google/switch-c-2048", "switch-c"),
        ("meta-llama/Meta-Llama-3.1-405B-Instruct", "llama-3.1-405b"),
        ("meta-llama/Llama-2-70b-chat-hf", "llama-2-70b"),
        ("deepseek-ai/deepseek-llm-67b-base", "deepseek-67b"),
    ],
)
def test_names_of_the_hub(hub: str, name: str) -> None:
    assert plan_model(hub).name == catalog()[name]["title"]


def test_wrapper_is_unwrapped() -> None:
    config = catalog()["llama-4-scout"]["config"]
    text = {k: v for k, v in config.items() if k != "model_type"}
    wrapper = {"model_type": "llama4", "text_config": text, "vision_config": {"hidden_size": 9}}
    assert plan_model(wrapper).total_params == 107_769_861_120


def test_v5_style_fields() -> None:
    config = {
        **catalog()["deepseek-v3"]["config"],
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4},
        "dtype": "bfloat16",
    }
    assert plan_model(config).total_params == 671_026_404_352


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("deepseek-v9", "near"),
        ("no/such/config.json", "no file"),
        ("", "required"),
        (None, "required"),
        (7, "required"),
        ("nul\0byte", "built in"),
        ("x" * 10_000, "built in"),
    ],
)
def test_unknown_models(model: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        plan_model(model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", "nul", '{"a": ' + "9" * 5000 + "}", "[" * 99_999])
def test_broken_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        plan_model(path)


def test_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        plan_model(tmp_path)


# -- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bits", "with_scales"),
    [
        ("f32", 32, 32),
        ("bf16", 16, 16),
        ("f16", 16, 16),
        ("mxfp4", 4, 4.25),
        ("q4_0", 4, 4.5),
        ("q8_0", 8, 8.5),
        ("q4_k", 4, 4.5),
        ("q6_k", 6, 6.5625),
        ("q5_k", 5, 5.5),
        ("q3_k", 3, 3.4375),
        ("q2_k", 2, 2.625),
        ("int4_g32", 4, 4.5),
    ],
)
def test_bits(name: str, bits: float, with_scales: float) -> None:
    assert FORMATS[name].bits == bits
    assert FORMATS[name].bits_with_scales == with_scales


def test_gguf_blocks_match_the_published_table() -> None:
    constants = pytest.importorskip("gguf.constants")
    sizes = {k.name.lower(): v for k, v in constants.GGML_QUANT_SIZES.items()}
    checked = 0
    for name, format in FORMATS.items():
        if format.source == "ggml":
            assert sizes[name] == (format.block, format.block_bytes), name
            checked += 1
    assert checked >= 20


def test_scales_of_edge_tiles_and_rows() -> None:
    assert FORMATS["fp8"].nbytes(129, 129) == 129 * 129 + 4 * 4
    assert FORMATS["int8"].nbytes(3, 5) == 15 + 12
    assert FORMATS["q4_0"].nbytes(2, 33) == 2 * 2 * 18


def test_quantised_models_keep_router_and_norms_in_float32() -> None:
    plan = plan_model(MIXTRAL, "int8")
    assert plan.component_bytes["router"] == 4 * plan.components["router"]
    assert plan.component_bytes["norms"] == 4 * plan.components["norms"]
    mixed = plan_model(MIXTRAL, "int4", recipe={"embedding": "bf16", "router": "bf16"})
    assert mixed.component_bytes["embedding"] == 2 * mixed.components["embedding"]
    assert mixed.component_bytes["router"] == 2 * mixed.components["router"]


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_bits_per_weight_is_near_the_label(format: str) -> None:
    plan = plan_model("qwen3-30b-a3b", format)
    label = FORMATS[format].bits_with_scales
    assert label * 0.999 <= plan.bits_per_weight <= label + 0.1


# -- cache --------------------------------------------------------------------------------------


def test_windows_bound_the_cache() -> None:
    plan = plan_model("gpt-oss-20b")
    half = plan.kv_elements_per_token // 2
    assert plan.cache_bytes(1000) == 2 * half * (1000 + 128)
    assert plan.cache_bytes(100) == 2 * plan.kv_elements_per_token * 100
    chunked = plan_model("llama-4-scout")
    assert chunked.cache_bytes(100_000) == 2 * 98_304 // 4 * (100_000 + 3 * 8192)


def test_largest_context_and_batch() -> None:
    plan = plan_model("mixtral-8x7b", "int4", context=4096)
    memory = 64e9
    longest = plan.max_context(memory)
    assert plan.weight_bytes + plan.cache_bytes(longest) <= memory
    assert plan.weight_bytes + plan.cache_bytes(longest + 1) > memory
    most = plan.max_batch(memory)
    assert plan.weight_bytes + plan.cache_bytes(4096, most) <= memory
    assert plan.weight_bytes + plan.cache_bytes(4096, most + 1) > memory
    assert plan.max_context(1e9) == 0
    assert plan.max_batch(1e9) == 0


def test_recurrent_layers_cost_no_cache_per_token() -> None:
    plan = plan_model("qwen3-next-80b-a3b")
    assert plan.kv_elements_per_token == 12 * 2 * 2 * 256
    assert plan.cache_bytes(0) > 0  # the states


def test_devices() -> None:
    plan = plan_model("deepseek-v3", "fp8")
    assert plan.devices(80e9) == 9
    assert plan.devices(141e9) == 5
    assert plan.devices(1e15) == 1
    placed = plan_model("deepseek-v3", "fp8", context=8192, batch=32).placement(80e9)
    assert placed.free_bytes == placed.devices * 80_000_000_000 - placed.needed_bytes
    assert placed.max_batch >= 32
    for bad in (0, -5, math.nan, "80", True):
        with pytest.raises(ValueError, match="memory_bytes"):
            plan.devices(bad)  # type: ignore[arg-type]


# -- work ---------------------------------------------------------------------------------------


def test_distinct_experts() -> None:
    assert plan_model("deepseek-v3").expected_distinct_experts == 8.0
    assert distinct_experts(256, 8, 2) == pytest.approx(256 * (1 - (1 - 8 / 256) ** 2), rel=1e-12)
    assert distinct_experts(256, 8, 1 << 40) == pytest.approx(256.0)
    assert distinct_experts(8, 8, 3) == 8.0
    assert distinct_experts(131_072, 4, 1) == 4.0
    rng = random.Random(0)
    for experts, k, batch in ((64, 6, 16), (8, 2, 3), (128, 1, 100)):
        trials = [
            len({e for _ in range(batch) for e in rng.sample(range(experts), k)})
            for _ in range(400)
        ]
        assert sum(trials) / 400 == pytest.approx(distinct_experts(experts, k, batch), rel=0.02)


def test_bytes_of_one_token_are_the_active_weights() -> None:
    plan = plan_model("mixtral-8x7b")
    row = 2 * 4096
    assert plan.bytes_per_token == 2 * plan.active_params_no_embedding + row
    batched = plan_model("mixtral-8x7b", batch=10**6)
    assert batched.bytes_per_token * 10**6 == pytest.approx(
        2 * (batched.total_params - batched.components["embedding"]) + 32_000 * row
    )


def test_roofline_by_hand() -> None:
    machine = {"memory_bytes": 64e9, "bandwidth": 50e9, "peak": {"bf16": 1e12}}
    plan = plan_model("olmoe-1b-7b")
    bound = plan.roofline(machine)
    assert bound.decode_bound == "bandwidth"
    assert bound.decode == pytest.approx(50e9 / plan.bytes_per_token)
    assert plan.tokens_per_second(machine) == bound.decode
    assert plan.tokens_per_second(machine, "prefill") == bound.prefill
    assert bound.prefill_bound == "compute"
    batch = bound.compute_bound_batch
    assert batch is not None
    for size, side in ((batch, "compute"), (batch - 1, "bandwidth")):
        assert plan_model("olmoe-1b-7b", batch=size).roofline(machine).decode_bound == side
    with pytest.raises(ValueError, match="phase"):
        plan.tokens_per_second(machine, "train")


def test_long_caches_never_become_compute_bound() -> None:
    plan = plan_model("llama-2-70b", context=1 << 20)
    assert plan.roofline("h100-80").compute_bound_batch is None


def test_prefill_attention_matches_the_sum_over_positions() -> None:
    from moekit.planner.roofline import flops_per_token, prefill_flops

    for name, prompt in (("gpt-oss-20b", 700), ("deepseek-v3.2", 3000), ("mixtral-8x7b", 40)):
        plan = plan_model(name)
        exact = sum(flops_per_token(plan, c, prefill=True) for c in range(prompt))
        assert prefill_flops(plan, prompt) == pytest.approx(exact, rel=2e-3)


def test_speed_grows_with_bandwidth_and_falls_with_bits() -> None:
    fast, slow = plan_model("qwen3-30b-a3b", "int4"), plan_model("qwen3-30b-a3b", "bf16")
    assert fast.tokens_per_second("workstation-64") > slow.tokens_per_second("workstation-64")
    assert fast.tokens_per_second("h200") > fast.tokens_per_second("a100-80")


# -- machines and money -------------------------------------------------------------------------


def test_presets() -> None:
    assert {"a100-80", "h100-80", "h200", "workstation-64"} <= set(machines())
    for machine in machines().values():
        assert machine.source
        assert machine.bandwidth > 1e9


def test_machines_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[machines.mine]\nmemory_bytes = 1e9\nbandwidth = 2e9\npeak = { f32 = 3e9 }\n"
        "[machines.h200]\nmemory_bytes = 1\nbandwidth = 2e9\npeak = { f32 = 3e9 }\n"
    )
    assert load_machines(path)["mine"].bandwidth == 2e9
    monkeypatch.setenv("MOEKIT_MACHINES", str(path))
    assert find_machine("mine").memory_bytes == 10**9
    assert find_machine("H200").memory_bytes == 1
    path.write_text("[machines.mine]\nmemory_bytes = -1\nbandwidth = 1e9\npeak = {f32 = 1}\n")
    with pytest.raises(ValueError, match=r"mine\.memory_bytes"):
        find_machine("mine")
    path.write_text("[[[")
    with pytest.raises(ValueError, match="no TOML"):
        find_machine("mine")


@pytest.mark.parametrize(
    "bad",
    [
        "h300",
        {},
        {"memory_bytes": 1},
        None,
        {"memory_bytes": 1, "bandwidth": math.nan, "peak": {"f32": 1}},
    ],
)
def test_bad_machines(bad: Any) -> None:
    with pytest.raises(ValueError, match="machine"):
        plan_model(MIXTRAL).roofline(bad)


def test_cost_by_hand() -> None:
    machine = {
        "memory_bytes": 64e9,
        "bandwidth": 100e9,
        "peak": {"bf16": 1e15},
        "price_per_hour": 3.6,
        "power_watts": 1000,
    }
    plan = plan_model("olmoe-1b-7b")
    rate = plan.tokens_per_second(machine)
    full = plan.cost(machine, power_price=0.4)
    assert full.dollars == pytest.approx(1e6 / rate / 3600 * 4.0)
    half = plan.cost(machine, power_price=0.4, utilisation=0.5)
    assert half.dollars == pytest.approx(2 * full.dollars)
    assert break_even_utilisation(full.dollars, 2 * full.dollars) == pytest.approx(0.5)
    for bad in ({"utilisation": 0.0}, {"utilisation": 1.1}, {"price_per_hour": math.nan}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            plan.cost(machine, **bad)


def test_training_compute_of_deepseek_v3() -> None:
    plan = plan_model("deepseek-v3")
    assert plan.training_flops(14.8e12) == 6 * plan.active_params * 14.8e12
    # 2.664e6 reported H800 hours are about a third of the bf16 peak
    cost = plan.training(14.8e12, "h800", utilisation=0.3515)
    assert cost.hours == pytest.approx(2.664e6, rel=0.01)
    assert cost.dollars == pytest.approx(2 * 2.664e6, rel=0.01)
    with pytest.raises(ValueError, match="tokens"):
        plan.training_flops(-1)


def test_repr_and_dict_put_active_first() -> None:
    plan = plan_model("deepseek-v3", "fp8")
    assert isinstance(plan, ModelPlan)
    assert "37.55B active of 671.03B" in repr(plan)
    numbers = [k for k, v in plan.to_dict().items() if isinstance(v, int)]
    assert numbers[0] == "active_params"
