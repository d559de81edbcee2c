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
