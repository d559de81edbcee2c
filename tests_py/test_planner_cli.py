"""`moekit plan`: what it prints, its JSON, its exit status."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from moekit.cli import plan as command
from moekit.planner import catalog, plan_model


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


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert moekit("--list") == 0
    out = capsys.readouterr().out
    assert "deepseek-v3" in out
    assert "a100-80" in out
    assert moekit("--list", "--json") == 0
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
