"""The planner's page of claims: each of its figures is computed here and found there."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import moekit
from moekit.cli import plan as command
from moekit.planner import (
    api_prices,
    break_even_utilisation,
    catalog,
    find_machine,
    monthly_saving,
    plan_model,
)

PAGE = (Path(moekit.__file__).parent / "planner" / "README.md").read_text(encoding="utf-8")


def row(start: str) -> str:
    """The table row whose first cell begins so."""
    return next(line for line in PAGE.splitlines() if line.startswith(f"| {start}"))


def test_counting() -> None:
    mixtral, llama = plan_model("mixtral-8x7b"), plan_model("llama-3.1-405b")
    scout, maverick = plan_model("llama-4-scout"), plan_model("llama-4-maverick")
    v3 = plan_model("deepseek-v3", "fp8")
    found = row('"8x7B')
    assert f"{mixtral.total_params / 1e9:.1f}B" in found
    assert f"{mixtral.active_params / 1e9:.1f}B" in found
    found = row('"Llama 4 405B')
    assert f"{llama.active_params:,} of {llama.total_params:,} active" in found
    assert f"({scout.total_params / 1e9:.1f}B)" in found
    assert f"({maverick.total_params / 1e9:.1f}B), {maverick.active_params / 1e9:.1f}B" in found
    assert f"{scout.active_params / 1e9:.1f}B active each" in found
    found = row('"DeepSeek-V3 has')
    assert f"{v3.total_params / 1e9:.1f}B, and {v3.mtp_params / 1e9:.1f}B" in found
    factor = 16 * v3.at(batch=16).bytes_per_token / v3.bytes_per_token
    assert f"a batch of 16 reads {factor:.1f} times" in row('"37B active')


def test_memory() -> None:
    found = row('"V3 in FP8')
    assert f"{plan_model('deepseek-v3', 'fp8').weight_bytes / 1e9:.1f} GB in FP8" in found
    assert f"{plan_model('deepseek-v3', 'bf16').weight_bytes / 1e9:,.1f} GB in BF16" in found
    found = row('"4 bits')
    for format, text in (("int4", "int4"), ("q4_k", "4.5"), ("q4_0", "4.5"), ("mxfp4", "mxfp4")):
        bits = plan_model("olmoe", format).format.bits_with_scales
        assert f"{bits:g}" in found, text
    config = catalog()["deepseek-v2"]["config"]
    v2, old = plan_model(config), plan_model("deepseek-67b")
    few = plan_model({**config, "n_routed_experts": 8})
    assert v2.kv_elements_per_token == few.kv_elements_per_token
    assert f"{v2.kv_elements_per_token:,} elements" in row('"sparse experts')
    found = row('"MLA makes')
    assert f"-{1 - v2.kv_bytes_per_token / old.kv_bytes_per_token:.1%}".replace("%", " %") in found
    six = plan_model(config, kv_format=6)
    assert f"-{1 - six.kv_bytes_per_token / old.kv_bytes_per_token:.1%}".replace("%", " %") in found
    assert f"({old.kv_elements_per_token:,} elements)" in found
    oss, context = plan_model("gpt-oss-120b", "mxfp4"), 131_072
    found = row('"a window')
    assert f"{oss.cache_bytes(context) / 1e9:.2f} GB" in found
    assert f"not {oss.kv_bytes_per_token * context / 1e9:.2f}" in found


def test_speed() -> None:
    h200 = find_machine("h200").times(6)
    for batch in (1, 16, 64, 512):
        woken = plan_model("deepseek-v3", batch=batch).expected_distinct_experts
        assert f"| {batch} | {woken:.1f} | {8 * batch / woken:.1f} |" in PAGE
    for batch, words in ((4, "{:.1f} times too fast at\n4 seq"), (64, "{:.1f} times at 64")):
        plan = plan_model("deepseek-v3", "fp8", context=4096, batch=batch)
        bound = plan.roofline(h200)
        each = plan.component_bytes["routed"] / 256
        careless = bound.decode_bytes - each * (plan.expected_distinct_experts - plan.top_k)
        time = max(careless / bound.bandwidth, bound.decode_flops / bound.peak)
        assert words.format(batch / time / bound.decode) in PAGE


def test_money() -> None:
    prices = api_prices()
    saving = monthly_saving(10e6, prices["gpt-4-turbo"]["input"], prices["deepseek-v3"]["input"])
    assert f"${saving:.2f}" in row('"10 M tokens')
    h200, api = find_machine("h200").times(6), prices["deepseek-v3"]["output"]
    found = row('"hosting')
    shares = {}
    for batch in (64, 256):
        cost = plan_model("deepseek-v3", "fp8", context=4096, batch=batch).cost(h200)
        shares[batch] = break_even_utilisation(cost.dollars, api)
        assert f"${cost.dollars_per_hour:.2f} an hour" in found
    assert f"${api:.2f}" in found
    assert f"{100 * shares[256]:.0f} % busy at 256" in found
    assert shares[64] > 1
    v3, hours = plan_model("deepseek-v3"), 2.664e6
    flops = v3.training_flops(14.8e12)
    share = flops / (hours * 3600 * find_machine("h800").peak["bf16"])
    dollars = v3.training(14.8e12, "h800", utilisation=share).dollars
    found = row('"it was trained')
    assert f"{flops:.3g} FLOP; {hours:,.0f} hours are {100 * share:.1f} %" in found
    assert f"${dollars / 1e6:.2f}M" in found


def test_commands_of_the_page_are_parsed() -> None:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    found = re.findall(r"`moekit (plan [^`]+)`", PAGE)
    assert len(found) >= 2
    for text in found:
        words = text.replace("[--format all]", "--format all").split()
        assert parser.parse_args(words).model
