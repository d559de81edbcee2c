"""The libraries that bench/peers.py compares with compute the same layer as moekit."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from moekit.bench import Shape, choose_experts

BENCH = Path(__file__).parent.parent / "bench"
SHAPE = Shape("small", hidden=256, inter=512, experts=5, top_k=2)

pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="needs the source tree")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module("peers")
    for name in [name for name in sys.modules if name.split(".")[0] == "peers"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "name", ["moekit_peer", "torch_peer", "transformers_peer", "ggml_peer", "onnxruntime_peer"]
)
def test_a_peer_computes_the_layer(peers: ModuleType, name: str):
    assert name in peers.MODULES
    layers = importlib.import_module("peers.layer")
    try:
        found = importlib.import_module(f"peers.{name}").load(threads=2)
    except layers.Missing as missing:
        pytest.skip(str(missing))
    layer = layers.Layer(SHAPE)
    x = np.random.default_rng(2).standard_normal((4, SHAPE.hidden), np.float32)
    routing = choose_experts(SHAPE, len(x), 1)[0]
    wanted = layer.reference(x, routing.experts, routing.weights)
    for peer in found:
        for format in set(peer.formats) & {"f32", "bf16", "f16", "int8", "int4", "q8_0", "q4_0"}:
            try:
                peer.pack(layer, format)
            except layers.Missing:
                continue
            out = peer.prepare(x, routing.experts, routing.weights)()
            error = float(((out - wanted) ** 2).sum() / (wanted**2).sum())
            assert error < 0.05, (peer.name, format)
            if format == "f32":
                assert error < 1e-10, peer.name
        peer.drop()


def test_an_expert_is_like_no_other(peers: ModuleType):
    layer = importlib.import_module("peers.layer").Layer(SHAPE)
    experts = [layer.expert(e) for e in range(SHAPE.experts)]
    for first in range(SHAPE.experts):
        for second in range(first):
            for a, b in zip(experts[first], experts[second], strict=True):
                assert np.mean(a == b) < 0.01
    gate, up, down = experts[0]
    assert gate.shape == up.shape == down.shape[::-1] == (SHAPE.inter, SHAPE.hidden)
    assert gate.var() * SHAPE.hidden == pytest.approx(1, rel=0.02)
    assert down.var() * SHAPE.inter == pytest.approx(1, rel=0.02)
