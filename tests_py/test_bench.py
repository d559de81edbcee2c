"""The measuring of the block and `moekit bench`. Nothing here asserts on a time."""

import json
import math

import numpy as np
import pytest

from moekit import bench, ops
from moekit.cli.main import main
from moekit.ops.limits import DOTS, LimitProbe, dot_of, threads_set_to

TINY = bench.Shape("tiny", hidden=72, inter=40, experts=5, top_k=2)


def run(*arguments: str) -> int:
    return main(["bench", *arguments])


def test_limits_are_positive_and_know_their_threads():
    limits = ops.machine_limits(threads=1, read_bytes=1 << 20, passes=3)
    assert limits.threads == 1
    assert 0 < limits.read_bandwidth <= limits.best_read_bandwidth < math.inf
    assert set(limits.multiply_peak) == set(DOTS)
    for dot, peak in limits.multiply_peak.items():
        assert 0 < peak <= limits.best_multiply_peak[dot] < math.inf
    # The roofline is the slower one of the two.
    assert limits.seconds(limits.read_bandwidth, 0, "f32") == pytest.approx(1)
    assert limits.seconds(1, 2 * limits.multiply_peak["u8s8"], "u8s8") == pytest.approx(2)


@pytest.mark.parametrize("arguments", [{"read_bytes": 5}, {"passes": 0}, {"threads": 0}])
def test_limits_refuse_what_cannot_be_measured(arguments: dict[str, int]):
    with pytest.raises(ValueError, match=r"^\[\w+\] .*;"):
        ops.machine_limits(**arguments)


def test_a_probe_refuses_an_unknown_dot_product():
    with pytest.raises(ValueError, match="'fp4'; known: f32"):
        LimitProbe(1 << 20).multiply_peak("fp4")
    with pytest.raises(ValueError, match="'moon'; 'wall' or 'cpu'"):
        LimitProbe(1 << 20, "moon")


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_both_clocks_run(clock: str):
    probe = LimitProbe(1 << 20, clock)
    before = probe.now()
    assert 0 < probe.read_bandwidth() < math.inf
    assert 0 < probe.multiply_peak("bf16") < math.inf
    assert probe.now() > before


def test_threads_are_put_back():
    from moekit import _core

    before = _core.num_threads()
    with threads_set_to(before + 1):
        assert _core.num_threads() == before + 1
    assert _core.num_threads() == before


@pytest.mark.parametrize("format", ops.format_names())
def test_the_repeated_weights_are_a_pattern_in_every_expert(format: str):
    block = bench.Block(TINY, format, memory=2 * TINY.expert_bytes(format))
    assert block.resident == 2
    assert block.experts.nbytes == 2 * TINY.expert_bytes(format)
    gate = block.experts.gate
    assert gate is not None
    values = gate.unpack()
    np.testing.assert_array_equal(values[0], values[4])
    assert np.isfinite(values).all()
    # 40 rows are two whole panels; the third has eight rows, which stay 0.
    assert np.all(values[:, :32].any(axis=2))


def test_routings_use_every_resident_expert_before_one_again():
    shape = bench.Shape("s", 16, 16, experts=12, top_k=3)
    ids = np.concatenate([a.experts for a in bench.choose_experts(shape, 2, 2)]).ravel()
    assert sorted(ids) == list(range(12))
    some = np.concatenate([a.experts for a in bench.choose_experts(shape, 1, 2, resident=6)])
    assert sorted(some.ravel()) == list(range(6))
    for assignment in bench.choose_experts(shape, 50, 3, resident=6):
        assert assignment.experts.shape == (50, 3)
        assert all(len(set(row)) == 3 for row in assignment.experts.tolist())
        assert set(assignment.experts.ravel()) == set(range(12))
        np.testing.assert_allclose(assignment.weights.sum(axis=1), 1)


def test_a_figure_counts_bytes_and_operations():
    block = bench.Block(TINY, "bf16")
    figure = block.measure(1, LimitProbe(1 << 20), seconds=1e-3)
    assert figure.weight_bytes == 2 * TINY.expert_bytes("bf16")
    assert figure.operations == 2 * 3 * 2 * 72 * 40
    assert figure.dot == TINY.dot("bf16") and figure.runs >= 3
    assert 0 < figure.min <= figure.median <= figure.p99
    reading = figure.weight_bytes / figure.read_bandwidth
    multiplying = figure.operations / figure.multiply_peak
    assert figure.fraction == pytest.approx(max(reading, multiplying) / figure.median)
    assert figure.bound == ("read" if reading >= multiplying else "multiply")


def test_the_exact_path_is_compared_with_float32():
    assert dot_of("int8", 64, 64, "auto") == "u8s8"
    assert dot_of("int8", 64, 64, "exact") == "f32"
    assert bench.SHAPES["mixtral-8x7b"].dot("bf16") == "bf16"


def test_json_holds_the_whole_table(capsys: pytest.CaptureFixture[str]):
    arguments = ["--shape", "64,32,4,2", "--shape", "72,40,5,2", "--format", "all", "--json"]
    assert run(*arguments, "--tokens", "1,3", "--seconds", "0.001", "--threads", "1") == 0
    table = json.loads(capsys.readouterr().out)
    assert table["machine"]["threads"] == 1
    assert table["machine"]["isa"]
    keys = [(line["shape"], line["format"], line["tokens"]) for line in table["lines"]]
    assert keys == [
        (shape, format, tokens)
        for shape in ("64,32,4,2", "72,40,5,2")
        for format in ops.format_names()
        for tokens in (1, 3)
    ]
    for line in table["lines"]:
        assert line["bound"] in ("read", "multiply")
        for key in ("min", "median", "p99", "bytes_per_second", "operations_per_second"):
            assert 0 < line[key] < math.inf, key
        assert line["fraction"] > 0


def test_the_table_has_a_line_for_every_batch(capsys: pytest.CaptureFixture[str]):
    arguments = ["--shape", "64,32,9,2", "--format", "bf16,int8", "--tokens", "2,7"]
    assert run(*arguments, "--seconds", "0.001", "--memory", "0.00002") == 0
    out = capsys.readouterr().out
    rows = [line.split("│")[1:-1] for line in out.splitlines() if "│" in line]
    for format in ("bf16", "int8"):
        assert [row[3].strip() for row in rows if row[1].strip() == format] == ["2", "7"]
    assert "64,32,9,2 bf16: 9 experts share the memory of 2" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--shape", "64,32,4"], "shape '64,32,4'; H,F,E,K or one of mixtral-8x7b"),
        (["--shape", "64,0,4,2"], "every size must be positive"),
        (["--shape", "64,32,4,5"], "top_k is more than the experts"),
        (["--shape", "64,32,4,2", "--format", "int9"], "int9"),
        (["--tokens", "1,two"], "--tokens is '1,two'"),
        (["--tokens", "0"], "--tokens is '0'"),
        (["--seconds", "0"], "--seconds is 0.0"),
        (["--seconds", "nan"], "--seconds is nan"),
        (["--memory", "-1"], "--memory is -1.0"),
        (["--threads", "0"], "threads is 0"),
        (["--shape", "64,32,4,2", "--compute", "quick"], "'quick'"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    assert line.startswith("moekit: [") and told in line
