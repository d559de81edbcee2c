"""Published and exact figures, to the integer, and the figures that articles get wrong."""

from __future__ import annotations

import pytest

from moekit.planner import api_prices, catalog, monthly_saving, plan_model

# name, total, active, active without the input embedding, cache elements a token
FACTS = [
    ("deepseek-67b", 67_425_001_472, 67_425_001_472, 66_586_140_672, 194_560),
    ("deepseek-moe-16b", 16_375_728_128, 2_828_650_496, 2_618_935_296, 114_688),
    ("deepseek-v2-lite", 15_706_484_224, 2_661_150_208, 2_451_435_008, 15_552),
    ("deepseek-v2", 235_741_434_880, 21_375_800_320, 20_851_512_320, 34_560),
    ("deepseek-v3", 671_026_404_352, 37_552_282_624, 36_625_603_584, 35_136),
    ("deepseek-r1", 671_026_404_352, 37_552_282_624, 36_625_603_584, 35_136),
    ("deepseek-v3.2", 671_877_929_216, 38_403_807_488, 37_477_128_448, 35_136),
    ("deepseek-v4-flash", 284_332_230_231, 13_799_622_231, 13_270_091_351, 3_440),
    ("deepseek-v4-pro", 1_572_997_179_491, 49_779_058_787, 48_852_379_747, 4_924),
    ("mixtral-8x7b", 46_702_792_704, 12_879_925_248, 12_748_853_248, 65_536),
    ("mixtral-8x22b", 140_630_071_296, 39_161_468_928, 38_960_142_336, 114_688),
    ("llama-4-scout", 107_769_861_120, 17_172_894_720, 16_138_408_960, 98_304),
    ("llama-4-maverick", 400_711_848_960, 17_184_691_200, 16_150_205_440, 98_304),
    ("qwen3-30b-a3b", 30_532_122_624, 3_353_032_704, 3_041_867_776, 49_152),
    ("qwen3-235b-a22b", 235_093_634_560, 22_190_763_520, 21_568_433_664, 96_256),
    ("olmoe-1b-7b", 6_919_161_856, 1_282_017_280, 1_178_994_688, 65_536),
    ("gpt-oss-20b", 20_914_757_184, 4_187_440_704, 3_608_307_264, 24_576),
    ("gpt-oss-120b", 116_829_156_672, 5_711_982_912, 5_132_849_472, 36_864),
    ("glm-4.5", 352_797_814_784, 33_632_251_904, 32_856_305_664, 188_416),
    ("glm-4.5-air", 106_852_245_504, 13_424_123_904, 12_803_366_912, 94_208),
    ("kimi-k2", 1_026_408_209_408, 32_861_477_888, 31_687_072_768, 35_136),
    ("switch-c", 1_571_308_972_448, 1_728_326_048, 1_728_326_048, 61_440),
    ("llama-3.1-405b", 405_853_388_800, 405_853_388_800, 403_752_042_496, 258_048),
    ("llama-2-70b", 68_976_648_192, 68_976_648_192, 68_714_504_192, 163_840),
]


@pytest.mark.parametrize(("name", "total", "active", "no_embedding", "kv"), FACTS)
def test_facts(name: str, total: int, active: int, no_embedding: int, kv: int) -> None:
    plan = plan_model(name)
    assert plan.total_params == total
    assert plan.active_params == active
    assert plan.active_params_no_embedding == no_embedding
    assert plan.kv_elements_per_token == kv
    assert plan.kv_bytes_per_token == 2 * kv
    assert plan.leverage == total / active
    # float formats store everything alike: bytes are exact multiples
    assert plan.weight_bytes == 2 * total
    assert plan_model(name, "f32").weight_bytes == 4 * total


@pytest.mark.parametrize("name", sorted(catalog()))
def test_components_add_up(name: str) -> None:
    for format in ("bf16", "int4", "fp8", "q4_k"):
        plan = plan_model(name, format)
        assert sum(plan.components.values()) == plan.total_params
        assert sum(plan.active_components.values()) == plan.active_params
        assert sum(plan.component_bytes.values()) == plan.weight_bytes
    experts = plan.components["routed"]
    if experts:
        assert plan.active_components["routed"] * plan.num_experts == experts * plan.top_k


def test_published_remarks() -> None:
    # 36.7B active "including 0.9B embedding and 0.9B head" counts one of the two
    v3 = plan_model("deepseek-v3")
    assert v3.components["embedding"] == v3.components["head"] == 926_679_040
    # 685B on the hub = 671B + a multi-token prediction layer with copies of embedding and head
    with_copies = v3.total_params + v3.mtp_params + 2 * 926_679_040
    assert 684e9 < with_copies < 685.5e9
    v32 = plan_model("deepseek-v3.2")
    assert v32.index_elements_per_token == 7_808
    assert v32.total_params - v3.total_params == 61 * 13_959_424
    # the fixed windows of V4
    flash, pro = plan_model("deepseek-v4-flash"), plan_model("deepseek-v4-pro")
    assert flash.cache_bytes(128) // 2 - flash.cache_bytes(0) // 2 >= 2_818_048
    assert pro.cache_bytes(1 << 20) == 2 * ((1 << 20) * 4_924 + 3_997_696)
    # gpt-oss model card: MXFP4 experts and bf16 elsewhere make a 12.8 and a 60.8 GiB checkpoint
    rest = dict.fromkeys(("embedding", "attention", "head", "norms", "router"), "bf16")
    for name, published in (("gpt-oss-20b", 12.8), ("gpt-oss-120b", 60.8)):
        size = plan_model(name, "mxfp4", recipe=rest).weight_bytes / 2**30
        assert abs(size - published) < 0.06
    assert plan_model("gpt-oss-20b").components["router"] == 24 * (32 * 2880 + 32)


def test_fp8_is_not_1_3_terabytes() -> None:
    fp8, bf16 = plan_model("deepseek-v3", "fp8"), plan_model("deepseek-v3", "bf16")
    assert 671e9 < fp8.weight_bytes < 672e9
    assert 1341e9 < bf16.weight_bytes < 1343e9


def test_cache_does_not_depend_on_experts() -> None:
    config = dict(catalog()["deepseek-v2"]["config"])
    one = plan_model(config)
    other = plan_model({**config, "n_routed_experts": 8, "num_experts_per_tok": 1})
    assert one.kv_elements_per_token == other.kv_elements_per_token == 34_560
    # MLA alone is -82 % of the 67B model; a cache of about 6 bits makes the published -93.3 %
    dense = plan_model("deepseek-67b")
    assert round(100 * (1 - one.kv_bytes_per_token / dense.kv_bytes_per_token), 1) == 82.2
    six = plan_model("deepseek-v2", kv_format=6)
    assert round(100 * (1 - six.kv_bytes_per_token / dense.kv_bytes_per_token), 1) == 93.3


def test_llama_405b_is_dense() -> None:
    plan = plan_model("llama-3.1-405b")
    assert plan.num_experts == 0
    assert plan.leverage == 1.0
    assert plan.expected_distinct_experts == 0.0


def test_saving_is_97_dollars() -> None:
    before, after = api_prices()["gpt-4-turbo"]["input"], api_prices()["deepseek-v3"]["input"]
    assert monthly_saving(10e6, before, after) == pytest.approx(97.3)


# GB as the figures are published: bits x parameters / 8, without scales
WEIGHT_GB = [
    ("deepseek-67b", 134.9, 67.4, 33.7, 16.9),
    ("deepseek-moe-16b", 32.8, 16.4, 8.2, 4.1),
    ("deepseek-v2-lite", 31.4, 15.7, 7.9, 3.9),
    ("deepseek-v2", 471.5, 235.7, 117.9, 58.9),
    ("deepseek-v3", 1342.1, 671.0, 335.5, 167.8),
    ("deepseek-r1", 1342.1, 671.0, 335.5, 167.8),
    ("deepseek-v3.2", 1343.8, 671.9, 335.9, 168.0),
    ("deepseek-v4-flash", 568.7, 284.3, 142.2, 71.1),
    ("deepseek-v4-pro", 3146.0, 1573.0, 786.5, 393.2),
    ("mixtral-8x7b", 93.4, 46.7, 23.4, 11.7),
    ("mixtral-8x22b", 281.3, 140.6, 70.3, 35.2),
    ("llama-4-scout", 215.5, 107.8, 53.9, 26.9),
    ("llama-4-maverick", 801.4, 400.7, 200.4, 100.2),
    ("qwen3-30b-a3b", 61.1, 30.5, 15.3, 7.6),
    ("qwen3-235b-a22b", 470.2, 235.1, 117.5, 58.8),
    ("olmoe-1b-7b", 13.8, 6.9, 3.5, 1.7),
    ("gpt-oss-20b", 41.8, 20.9, 10.5, 5.2),
    ("gpt-oss-120b", 233.7, 116.8, 58.4, 29.2),
    ("glm-4.5", 705.6, 352.8, 176.4, 88.2),
    ("glm-4.5-air", 213.7, 106.9, 53.4, 26.7),
    ("kimi-k2", 2052.8, 1026.4, 513.2, 256.6),
    ("switch-c", 3142.6, 1571.3, 785.7, 392.8),
]


@pytest.mark.parametrize(("name", "bf16", "int8", "int4", "int2"), WEIGHT_GB)
def test_weight_bytes(name: str, bf16: float, int8: float, int4: float, int2: float) -> None:
    for format, published in (
        ("bf16", bf16),
        ("fp8", int8),
        ("int8", int8),
        ("int4", int4),
        ("int2", int2),
    ):
        plan = plan_model(name, format)
        assert abs(plan.total_params * plan.format.bits / 8e9 - published) <= 0.0501
        # what memory sees: the label's bits, the scales, and float32 routers, norms and biases
        label, real = plan.total_params * plan.format.bits / 8, plan.weight_bytes
        scales = plan.format.bits_with_scales / plan.format.bits
        parts = plan.components
        plain = sum(parts[part] for part in ("router", "norms", "residual"))
        assert label <= real
        if name not in ("gpt-oss-20b", "gpt-oss-120b"):  # their experts' biases are float32 too
            assert real <= 1.03 * (label * scales + 4 * plain) + 1e6


def test_leverage_as_published() -> None:
    table = {
        "deepseek-67b": 1.00,
        "deepseek-moe-16b": 5.79,
        "deepseek-v2-lite": 5.90,
        "deepseek-v2": 11.03,
        "deepseek-v3": 17.87,
        "deepseek-v3.2": 17.50,
        "deepseek-v4-flash": 20.60,
        "deepseek-v4-pro": 31.60,
        "mixtral-8x7b": 3.63,
        "mixtral-8x22b": 3.59,
        "llama-4-scout": 6.28,
        "llama-4-maverick": 23.32,
        "qwen3-30b-a3b": 9.11,
        "qwen3-235b-a22b": 10.59,
        "olmoe-1b-7b": 5.40,
        "gpt-oss-20b": 4.99,
        "gpt-oss-120b": 20.45,
        "glm-4.5": 10.49,
        "glm-4.5-air": 7.96,
        "kimi-k2": 31.23,
        "switch-c": 909.15,
    }
    for name, leverage in table.items():
        plan = plan_model(name)
        assert round(plan.leverage, 2) == leverage, name
        assert plan.sparsity == 1 - plan.active_params / plan.total_params


def test_derived_figures() -> None:
    v3 = plan_model("deepseek-v3")
    # MLA against the expanded keys and values of all heads
    expanded = 61 * 128 * (192 + 128)
    assert expanded == 2_498_560
    assert round(expanded / v3.kv_elements_per_token) == 71
    assert v3.kv_bytes_per_token == 70_272
    # 11.5B unique parameters as published; the projection of its two inputs comes on top
    assert round((v3.mtp_params - 7_168 * 2 * 7_168) / 1e9, 1) == 11.5
    # DeepSeek-V4 against V3.2 with its indexer's keys, at equal precision
    v32 = plan_model("deepseek-v3.2")
    reference = v32.kv_elements_per_token + v32.index_elements_per_token
    assert reference == 42_944
    flash, pro = plan_model("deepseek-v4-flash"), plan_model("deepseek-v4-pro")
    assert round(100 * flash.kv_elements_per_token / reference, 1) == 8.0
    assert round(100 * pro.kv_elements_per_token / reference, 1) == 11.5
    assert flash.cache_bytes(1 << 20) == 2 * ((1 << 20) * 3_440 + 2_818_048)
    # the vocabulary of Mixtral 8x22B's base
    mixtral = {**catalog()["mixtral-8x22b"]["config"], "vocab_size": 32_000}
    assert round(plan_model(mixtral).total_params / 1e9, 2) == 140.62
    # OLMoE's class default is not the released model
    olmoe = {**catalog()["olmoe-1b-7b"]["config"], "intermediate_size": 2_048}
    assert plan_model(olmoe).total_params > 13e9
    # GLM-4.5 without embedding and head, Air likewise
    for name, published in (("glm-4.5", 351.2), ("glm-4.5-air", 105.6)):
        plan = plan_model(name)
        outside = plan.components["embedding"] + plan.components["head"]
        assert abs((plan.total_params - outside) / 1e9 - published) < 0.06
    # the hub's config.json of Switch-C has 12 decoder layers and 30 heads: another model
    switch = {**catalog()["switch-c"]["config"], "num_heads": 30, "num_decoder_layers": 12}
    if "num_sparse_decoder_layers" in switch:
        switch["num_sparse_decoder_layers"] = 12
    assert round(plan_model(switch).total_params / 1e9) == 1_414
    assert round(plan_model("qwen3-next").active_params / 1e9, 2) == 3.87  # as transformers counts
    # gpt-oss: 4.25 bits with scales for the experts
    assert plan_model("gpt-oss-20b", "mxfp4").format.bits_with_scales == 4.25


def test_the_layer_of_131072_experts() -> None:
    config = {
        **catalog()["mixtral-8x7b"]["config"],
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 1_024,
        "num_hidden_layers": 1,
        "num_local_experts": 131_072,
        "num_experts_per_tok": 4,
    }
    routed = plan_model(config).components["routed"]
    # three matrices here where the paper has two: 2 * 512 * 1024 each, 137.4B in one layer
    assert routed // 3 * 2 == 131_072 * 2 * 512 * 1_024 == 137_438_953_472
