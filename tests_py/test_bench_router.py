"""bench/router_speed.py compares two routers that choose and weigh alike."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moekit import _core

SCRIPT = Path(__file__).parent.parent / "bench" / "router_speed.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="needs the source tree")


@pytest.fixture
def script() -> Any:
    pytest.importorskip("transformers.models.deepseek_v3")
    spec = importlib.util.spec_from_file_location("router_speed", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_routers_are_compared_and_timed(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    functions = script.modeling_deepseek_v3.F
    few = ["--tokens", "1,33", "--rounds", "2", "--repeat", "1", "--threads", "1", "--json"]
    monkeypatch.setattr(sys, "argv", ["router_speed.py", *few])
    before = _core.num_threads()
    try:
        assert script.main() == 0
    finally:
        _core.set_num_threads(before)
    lines = json.loads(capsys.readouterr().out)
    assert [line["tokens"] for line in lines] == [1, 33]
    assert all(line["ratio"] > 0 for line in lines)
    assert script.modeling_deepseek_v3.F is functions  # put back


@pytest.mark.parametrize("seed", range(4))
def test_another_choice_or_weight_is_seen(script: Any, seed: int):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((50, script.EXPERTS), np.float32)
    bias = 0.1 * rng.standard_normal(script.EXPERTS, np.float32)
    theirs, ours = script.transformers_rule(logits, bias)(), script.moekit_rule(logits, bias)()
    script.check(*theirs, *ours)
    with pytest.raises(AssertionError):
        script.check(*theirs, *script.moekit_rule(logits, -bias)())
    with pytest.raises(AssertionError):
        script.check(*theirs, ours[0], ours[1] * np.float32(1.001))
