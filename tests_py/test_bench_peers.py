"""The libraries that bench/peers.py compares with compute the same layer as moekit."""

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moekit import _core
from moekit.bench import Shape, choose_experts

BENCH = Path(__file__).parent.parent / "bench"
SHAPE = Shape("small", hidden=256, inter=512, experts=5, top_k=2)
FORMATS = ("f32", "bf16", "f16", "fp8", "int8", "int4", "q8_0", "q4_0", "q4_k")
NAMES = ["moekit", "torch", "transformers", "ggml", "ik", "vllm", "zentorch", "kt"]
NAMES += ["onnxruntime"]

pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="needs the source tree")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module("peers")
    for name in [name for name in sys.modules if name.split(".")[0] == "peers"]:
        del sys.modules[name]


def part(name: str) -> Any:
    return importlib.import_module(f"peers.{name}")


def started(name: str) -> Any:
    try:
        return part("library").Library(name, 1, "wall")
    except part("layer").Missing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("name", NAMES)
def test_a_peer_computes_the_layer(peers: ModuleType, tmp_path: Path, name: str):
    assert list(peers.LIBRARIES) == NAMES
    library = started(name)
    Missing = part("layer").Missing
    layer = part("layer").Layer(SHAPE)
    layer.save(tmp_path)
    x = np.random.default_rng(2).standard_normal((4, SHAPE.hidden), np.float32)
    routings = choose_experts(SHAPE, len(x), 2)
    experts = np.stack([routing.experts for routing in routings])
    weights = np.stack([routing.weights for routing in routings])
    np.savez(tmp_path / "inputs.npz", x=x, experts=experts, weights=weights)
    wanted = layer.reference(x, experts[0], weights[0])
    compared = 0
    try:
        sizes = [SHAPE.hidden, SHAPE.inter, SHAPE.experts, SHAPE.top_k]
        library.ask("layer", sizes=sizes, folder=str(tmp_path))
        for index, (peer, formats) in enumerate(library.peers):
            for format in [format for format in FORMATS if format in formats]:
                try:
                    library.ask("pack", peer=index, format=format)
                    library.ask("inputs", file=str(tmp_path / "inputs.npz"))
                    library.ask("prepare", peer=index, out=str(tmp_path / "out.npy"))
                except Missing:
                    assert library.running, (peer, format)
                    continue
                out = np.load(tmp_path / "out.npy")
                error = float(((out - wanted) ** 2).sum() / (wanted**2).sum())
                assert error < (1e-10 if format == "f32" else 0.06), (peer, format)
                assert len(library.ask("run", peer=index, first=1, count=3)) == 3
                compared += 1
                library.ask("drop", peer=index)
    finally:
        library.close()
    assert compared


def test_experts_are_different_and_repeat_by_a_prime(peers: ModuleType):
    layer = part("layer").Layer(Shape("wide", 256, 512, experts=9, top_k=2))
    experts = [layer.expert(e) for e in range(7)]
    for first in range(7):
        for second in range(first):
            for a, b in zip(experts[first], experts[second], strict=True):
                assert np.mean(a == b) < 0.01
    gate, up, down = experts[0]
    assert gate.shape == up.shape == down.shape[::-1] == (512, 256)
    assert gate.var() * 256 == pytest.approx(1, rel=0.02)
    assert down.var() * 512 == pytest.approx(1, rel=0.02)
    packed = dict(layer.packed(lambda *matrices: [matrix.copy() for matrix in matrices]))
    for index, matrices in packed.items():
        for ours, values in zip(matrices, layer.expert(index), strict=True):
            assert (ours == values).all()
    assert list(packed) == list(range(9))
    assert packed[7] is packed[0]


def test_a_saved_layer_is_the_layer(peers: ModuleType, tmp_path: Path):
    Layer = part("layer").Layer
    layer = Layer(SHAPE)
    layer.save(tmp_path)
    opened = Layer.open(SHAPE, tmp_path)
    for expert in range(SHAPE.experts):
        for a, b in zip(layer.expert(expert), opened.expert(expert), strict=True):
            assert (a == b).all()


def test_an_interpreter_that_is_not_there(peers: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MOEKIT_VLLM_PYTHON", "/no/such/python")
    with pytest.raises(part("layer").Missing, match="MOEKIT_VLLM_PYTHON=/no/such/python"):
        part("library").Library("vllm", 1, "wall")


def test_a_library_that_is_not_there(peers: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IK_LIBRARY_DIR", "/no/such/folder")
    with pytest.raises(part("layer").Missing, match=r"libggml\.so.*MOEKIT_IK_PYTHON"):
        part("library").Library("ik", 1, "wall")


@pytest.mark.parametrize("seen", [False, True])
def test_a_process_that_dies_is_told_and_starts_again(peers: ModuleType, seen: bool):
    library = started("moekit")
    try:
        os.kill(library._process.pid, 9)
        if seen:
            library._process.wait()
        with pytest.raises(part("layer").Missing, match="ended with -9"):
            library.ask("pack", peer=0, format="f32")
        assert not library.running
        library.start()
        assert library.running
    finally:
        library.close()
    assert not library.running


def test_spinning_threads_are_waited_for(peers: ModuleType, monkeypatch: pytest.MonkeyPatch):
    library = started("moekit")
    try:
        assert part("library")._processor_seconds(library._process.pid) > 0
        spins_twice = [0.0, 0.005, 0.005, 0.01, 0.01, 0.01]
        told = iter(spins_twice)
        monkeypatch.setattr(part("library"), "_processor_seconds", lambda process: next(told))
        library.settle(at_most=60)
        assert next(told, None) is None
        told = iter(spins_twice)
        library.settle(at_most=0)
        assert list(told) == spins_twice[2:]
    finally:
        library.close()


class Computing:
    """Stands for a library's process: answers with an output that was computed beforehand."""

    running = True

    def __init__(self, name: str, out: Any) -> None:
        self.name, self._out = name, out

    def ask(self, do: str, **what: Any) -> None:
        if do == "prepare":
            np.save(what["out"], self._out)


@pytest.mark.parametrize("format", FORMATS)
def test_another_function_is_no_peer(peers: ModuleType, tmp_path: Path, format: str):
    comparison = part("comparison")
    layer = part("layer").Layer(SHAPE)
    x = np.random.default_rng(3).standard_normal((6, SHAPE.hidden), np.float32)
    routing = choose_experts(SHAPE, len(x), 1)[0]
    exact = layer.reference(x, routing.experts, routing.weights)
    rng = np.random.default_rng(4)
    noise = [rng.standard_normal(exact.shape, np.float32) * exact.std() for _ in range(2)]
    size = {"f32": 1e-6, "bf16": 3e-3, "f16": 3e-3, "q8_0": 0.01, "int8": 0.02, "fp8": 0.04}
    rounding = size.get(format, 0.15)
    last_wrong = exact.copy()
    last_wrong[5] = layer.reference(x[5:], (routing.experts[5:] + 1) % 5, routing.weights[5:])[0]
    outputs = {
        "moekit": exact + rounding * noise[0],
        "alike": exact + rounding * noise[1],
        "one token by other experts": last_wrong,
        "weights left out": exact * SHAPE.top_k,
        "not a number": np.full_like(exact, np.nan),
    }
    at = [
        comparison.Peer(Computing(name, out), 0, name, (format,)) for name, out in outputs.items()
    ]
    compared = comparison.Comparison(SHAPE, layer, tmp_path, format, []).prepared(
        SHAPE, x, [routing], at
    )
    same = [line.peer for line in compared.values() if line.same]
    assert same == ["moekit", "alike"]


def test_without_moekit_nothing_is_compared(peers: ModuleType, tmp_path: Path):
    class Failing(Computing):
        def ask(self, do: str, **what: Any) -> None:
            raise part("layer").Missing("moekit: cannot")

    comparison = part("comparison")
    layer = part("layer").Layer(SHAPE)
    x = np.ones((3, SHAPE.hidden), np.float32)
    at = [
        comparison.Peer(library, 0, library.name, ("f32",))
        for library in (Failing("moekit", None), Computing("other", x))
    ]
    compared = comparison.Comparison(SHAPE, layer, tmp_path, "f32", [])
    routings = choose_experts(SHAPE, len(x), 1)
    assert compared.prepared(SHAPE, x, routings, at) == {}
    assert compared.run([1], None, 1, 1.0) == []  # no library at all


def test_the_summary_takes_the_best_of_each_cell(peers: ModuleType):
    Ratio = part("summary").Ratio
    text = (
        part("summary")
        .summary(
            [
                Ratio("s", "q4_0", 1, "ggml", 3.0),
                Ratio("s", "q4_0", 1, "ggml repack", 2.0),
                Ratio("s", "q8_0", 1, "ggml", 8.0),
                Ratio("s", "q8_0", 1, "ik", 0.5),
            ]
        )
        .splitlines()
    )
    rows = {line.split("  ")[1]: line for line in text if line.startswith("  ")}
    assert (
        "geometric mean   1.00 of 2 cells, worst 0.50 (s q8_0, 1 tokens, ik)"
        in rows["the best of each cell"]
    )
    assert "geometric mean   4.90 of 2 cells, worst 3.00" in rows["ggml"]
    assert "geometric mean   4.00 of 2 cells" in rows["llama.cpp's default, 1 tokens"]
    assert "cells below 0.95 of the best: 1 of 2" in rows["cells below 0.95 of the best: 1 of 2"]
    assert part("summary").summary([]).strip() == "no peer was compared"


def test_the_script_compares_checks_and_sums_up(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    spec = importlib.util.spec_from_file_location("peers_script", BENCH / "peers.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    probe = SimpleNamespace(read_bandwidth=lambda: 1e10, multiply_peak=lambda dot: 1e12)
    monkeypatch.setattr(script, "LimitProbe", lambda clock: probe)
    monkeypatch.setenv("MOEKIT_VLLM_PYTHON", "/no/such/python")
    cells = ["--format", "f32,q4_0", "--tokens", "1,5", "--rounds", "3", "--threads", "1"]
    only = ["--only", "torch,vllm"]
    monkeypatch.setattr(
        sys, "argv", ["peers.py", "--shape", "256,512,5,2", *cells, *only, "--json"]
    )
    before = _core.num_threads()
    try:
        assert script.main() == 0
    finally:
        _core.set_num_threads(before)
    told = capsys.readouterr()
    lines = json.loads(told.out)
    assert {(line["format"], line["tokens"]) for line in lines if line["peer"] == "moekit"} == {
        (format, tokens) for format in ("f32", "q4_0") for tokens in (1, 5)
    }
    assert all(line["same"] and line["ratio"] > 0 and len(line["times"]) > 0 for line in lines)
    assert "/no/such/python" in told.err
    torch_lines = [line for line in lines if line["peer"].startswith("torch")]
    assert len(torch_lines) in (0, 4)  # none where torch is not installed; both ways, f32 only
    assert ("the best of each cell" in told.err) == bool(torch_lines)
