"""`moekit plan`: what it prints, its JSON, its exit status."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from moekit.cli import plan as command
from moekit.planner import FORMATS, api_prices, catalog, find_machine, plan_model


def moekit(*words: str) -> int:
    parser = argparse.ArgumentParser(prog="moekit")
    command.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["plan", *words])
    result: int = args.run(args)
    return result


def test_active_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert moekit("deepseek-v3", "--format", "fp8") == 0
    out = capsys.readouterr().out
    assert out.index("37,552,282,624") < out.index("671,026,404,352")
    assert "58 x 256 x 2048 x 7168" in out
    assert "8 of 256 active" in out
    for name in ("h100-80", "h200", "workstation-64"):
        assert name in out


def test_one_machine_shows_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("mixtral-8x7b", "--machine", "h200", "--batch", "4", "--api-price", "0.6")
    assert moekit(*words, "--train", "1e12") == 0
    out = capsys.readouterr().out
    assert "8 x (1 - (1 - 2/8)^4) = 5.47" in out
    assert "break-even" in out
    assert "device hours" in out


def test_json_holds_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert moekit("olmoe", "--json", "--format", "int4", "--machine", "h200") == 0
    figures = json.loads(capsys.readouterr().out)
    plan = plan_model("olmoe", "int4", context=4096)
    assert figures["active_params"] == plan.active_params
    assert figures["weight_bytes"] == plan.weight_bytes
    assert figures["machines"]["h200"]["decode"] == plan.tokens_per_second("h200")


def test_compare(capsys: pytest.CaptureFixture[str]) -> None:
    assert moekit("mixtral-8x7b", "--vs", "llama-2-70b", "--machine", "h100-80") == 0
    out = capsys.readouterr().out
    assert "12,879,925,248" in out
    assert "68,976,648,192" in out
    assert moekit("mixtral-8x7b", "--vs", "llama-2-70b", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["plans"]) == 2


def test_compare_shows_speed_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("mixtral-8x7b", "--vs", "llama-2-70b", "--vs", "olmoe", "--machine", "h100-80")
    assert moekit(*words, "--devices", "4") == 0
    out = capsys.readouterr().out
    line = next(text for text in out.splitlines() if text.startswith("decode, h100-80"))
    machine = find_machine("h100-80").times(4)
    for name in ("mixtral-8x7b", "llama-2-70b", "olmoe"):
        rate = plan_model(name, context=4096).tokens_per_second(machine)
        assert (f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}") + " tok/s on 4" in line
    assert "a million tokens, h100-80" in out


def test_api_prices_by_name_and_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("deepseek-v3", "--format", "fp8", "--machine", "h200", "--batch", "256")
    assert moekit(*words, "--api-price", "DeepSeek-R1") == 0
    out = capsys.readouterr().out
    assert "against $2.19" in out
    assert api_prices()["deepseek-r1"]["source"] in out
    assert "tokens a month" in out
    assert moekit(*words, "--api-price", "2.19", "--json") == 0
    figures = json.loads(capsys.readouterr().out)["machines"]["h200"]
    share = figures["break_even_utilisation"]
    assert share == pytest.approx(figures["dollars_per_million_tokens"] / 2.19)
    own = tmp_path / "prices.toml"
    own.write_text('[api.mine]\ninput = 1\noutput = 3.5\nsource = "a bill"\n')
    monkeypatch.setenv("MOEKIT_PRICES", str(own))
    assert moekit(*words, "--api-price", "mine") == 0
    assert "a bill" in capsys.readouterr().out
    for text in ("x", "[api.a]\ninput=1\noutput=2", "[api.a]\ninput='1'", "api=3", "[api.a]\n"):
        own.write_text(text)
        assert moekit(*words, "--api-price", "mine") == 2
        assert str(own) in capsys.readouterr().err


def test_a_given_memory(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("glm-4.5-air", "--format", "int4", "--kv-format", "int8", "--memory", "64")
    plan = plan_model("glm-4.5-air", "int4", context=4096, kv_format="int8")
    placed = plan.placement(64e9)
    assert placed.max_context == plan.max_context(64e9 * placed.devices)
    assert moekit(*words) == 0
    out = capsys.readouterr().out
    assert f"in {placed.devices} x 64.00 GB" in out
    assert f"one sequence of {placed.max_context:,} tokens, or {placed.max_batch:,} of 4,096" in out
    assert moekit(*words, "--devices", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["placement"]["devices"] == 1
    assert moekit("deepseek-v3", "--memory", "80", "--devices", "1") == 0
    assert "short" in capsys.readouterr().out


def test_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert moekit("olmoe", "--format", "all") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in FORMATS)
    assert moekit("olmoe", "--format", "all", "--json") == 0
    figures = json.loads(capsys.readouterr().out)["OLMoE-1B-7B"]
    assert figures["q4_k"]["weight_bytes"] == plan_model("olmoe", "q4_k").weight_bytes


def test_verify_prints_its_arithmetic(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("moekit._core")
    config = {
        "model_type": "mixtral",
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = (str(tmp_path), "--verify", "--threads", "1", "--clock", "cpu", "--prompt", "8")
    assert moekit(*words, "--format", "int8") == 0
    out = capsys.readouterr().out
    for word in ("predicted", "measured", "ratio", "2 of 4 x 64 x 64 int8", "weighted sum", "/s"):
        assert word in out
    assert moekit(*words, "--format", "int8", "--json") == 0
    assert {c["phase"] for c in json.loads(capsys.readouterr().out)["checks"]} == {
        "decode",
        "prefill",
    }


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert moekit("--list") == 0
    out = capsys.readouterr().out
    assert "deepseek-v3" in out
    assert "a100-80" in out
    assert moekit("--list", "--json") == 0
    assert "gpt-4-turbo" in out
    assert "MOEKIT_MACHINES" in out
    assert "mixtral" in json.loads(capsys.readouterr().out)["model_types"]


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-model"],
        [],
        ["olmoe", "--format", "int9"],
        ["olmoe", "--machine", "abacus"],
        ["olmoe", "--context", "-1"],
        ["olmoe", "--batch", "0"],
        ["olmoe", "--kv-format", "nan"],
        ["olmoe", "--recipe", "head"],
        ["olmoe", "--devices", "0"],
        ["olmoe", "--vs", "nope"],
        ["olmoe", "--machine", "h200", "--utilisation", "0"],
        ["olmoe", "--machine", "h200", "--train", "nan"],
        ["olmoe", "--machine", "h200", "--api-price", "0"],
        ["olmoe", "--machine", "h200", "--api-price", "nan"],
        ["olmoe", "--machine", "h200", "--api-price", "nobody", "--json"],
        ["olmoe", "--memory", "nan"],
        ["olmoe", "--memory", "-1", "--json"],
        ["olmoe", "--verify", "--prompt", "0"],
        ["olmoe", "--verify", "--format", "q8_k"],
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_status_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert moekit(*words) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("moekit plan: ")


def test_bad_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    config = {**catalog()["olmoe-1b-7b"]["config"], "vocab_size": float("nan")}
    path.write_text(json.dumps(config))
    assert moekit(str(path)) == 2
    assert "vocab_size is nan" in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        moekit("--help")
    assert end.value.code == 0
    assert "moekit plan deepseek-v3" in capsys.readouterr().out


@pytest.mark.parametrize("others", [[], ["--vs", "llama-2-70b"]])
def test_plot_writes_a_picture(tmp_path: Path, others: list[str]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plan.png"
    assert moekit("mixtral-8x7b", *others, "--plot", str(path), "--batch", "8", "--json") == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert moekit("mixtral-8x7b", "--plot", str(tmp_path / "no" / "x.png")) == 2
    assert moekit("mixtral-8x7b", "--plot", str(tmp_path / "x.nonsense")) == 2
