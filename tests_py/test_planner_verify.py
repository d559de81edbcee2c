"""--verify: the synthetic model has the plan's matrices, and predictions come from the roofline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import moekit
from moekit.planner import catalog, find_format, find_machine, plan_model
from moekit.planner.synthetic import shrink

TINY = {
    "model_type": "qwen3_moe",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "mlp_only_layers": [0],
}


def test_shrinking_keeps_matrices_and_every_kind_of_layer() -> None:
    plan = plan_model(TINY)
    whole = shrink(plan, 10**9)
    dropped = plan.components["norms"] + plan.components["embedding"]
    assert whole.total_params == plan.total_params - dropped
    small = shrink(plan, whole.total_params // 3)
    assert {layer.name for layer in small.inventory.layers} == {
        layer.name for layer in plan.inventory.layers
    }
    assert small.total_params < whole.total_params
    assert small.expected_distinct_experts == plan.expected_distinct_experts
    with pytest.raises(RuntimeError, match="one layer of each kind"):
        shrink(plan_model("deepseek-v3"), 10**6)


@pytest.mark.parametrize("name", sorted(catalog()))
def test_every_built_in_model_shrinks_or_says_why(name: str) -> None:
    plan = plan_model(name, "int8")
    try:
        small = shrink(plan)
    except RuntimeError as error:
        assert "weights" in str(error)  # noqa: PT017
        return
    assert small.total_params <= 4 * 10**9 + 10**9
    assert small.bytes_per_token > 0


@pytest.fixture(scope="module")
def ops() -> Any:
    pytest.importorskip("moekit._core")
    from moekit import ops

    if not hasattr(ops, "Assignment"):
        pytest.skip("this build has no router")
    return ops


def test_verify_compares_a_roofline_with_a_run(ops: Any) -> None:
    from moekit.planner.roofline import bound
    from moekit.planner.verify import verify

    plan = plan_model(TINY, "int8")
    found = verify(plan, prompt=16)
    small = shrink(plan)
    assert found.weights == small.total_params
    # q k v o of six layers, a router and a block of five, gate up down of the dense one, the head
    assert found.calls == 6 * 4 + 5 * 2 + 3 + 1
    line = bound(small, found.probe.machine(10**9), prompt=16)
    for check, predicted in zip(found.checks, (line.decode, line.prefill), strict=True):
        assert check.predicted == predicted
        assert check.measured > 0
        assert check.ratio == check.measured / check.predicted
    assert found.to_dict()["checks"][0]["phase"] == "decode"


def test_this_machine_is_measured(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from moekit.planner import probe

    monkeypatch.setattr(probe, "STREAM_BYTES", 1 << 20)
    probe.this_machine.cache_clear()
    machine = find_machine("this")
    probe.this_machine.cache_clear()
    assert {"f32", "bf16", "int8"} >= set(machine.peak)
    assert machine.bandwidth > 0
    assert plan_model(TINY).roofline("this").fits


def test_calls_cost_time_of_their_own() -> None:
    plan = plan_model(TINY)
    free = {"memory_bytes": 1e9, "bandwidth": 1e15, "peak": {"f32": 1e18}}
    dear = {**free, "call_seconds": 1e-3, "block_seconds": 1e-2}
    seconds = 1 / plan.tokens_per_second(dear) - 1 / plan.tokens_per_second(free)
    # q k v o of six layers, five routers, the dense gate, up and down, the head; five blocks
    assert seconds == pytest.approx((6 * 4 + 5 + 3 + 1) * 1e-3 + 5 * 1e-2)


def test_unknown_kernels_are_refused(ops: Any) -> None:
    from moekit.planner.verify import verify

    with pytest.raises(RuntimeError, match="no kernels for iq1_s"):
        verify(plan_model(TINY, "iq1_s"))


def test_synthetic_steps_run_every_call(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from moekit.planner.synthetic import SyntheticModel

    seen = {"matmul": 0, "moe_ffn": 0, "distinct": set()}
    real_matmul, real_ffn = ops.matmul, ops.moe_ffn

    def matmul(x: Any, packed: Any, *rest: Any, **options: Any) -> Any:
        seen["matmul"] += 1
        return real_matmul(x, packed, *rest, **options)

    def moe_ffn(x: Any, assignment: Any, *rest: Any, **options: Any) -> Any:
        seen["moe_ffn"] += 1
        seen["distinct"].update(assignment.experts.ravel().tolist())
        return real_ffn(x, assignment, *rest, **options)

    monkeypatch.setattr(ops, "matmul", matmul)
    monkeypatch.setattr(ops, "moe_ffn", moe_ffn)
    model = SyntheticModel(shrink(plan_model(TINY, "bf16")))
    for _ in range(20):
        for call in model.step(1):
            call()
    assert seen["matmul"] + seen["moe_ffn"] == 20 * len(model.step(1))
    assert seen["moe_ffn"] == 20 * 5
    assert len(seen["distinct"]) == 8  # steps do not repeat the same two experts


def test_the_shipped_model_is_planned_to_the_parameter() -> None:
    from moekit import checkpoint

    folder = Path(moekit.__file__).parent / "demo"
    if not (folder / "model.safetensors").exists():
        pytest.skip("no demo model in this tree")
    with checkpoint.open(folder / "model.safetensors") as held:
        sizes = {name: math.prod(held.info(name).shape) for name in held}
    biases = sum(n for name, n in sizes.items() if "e_score_correction_bias" in name)
    plan = plan_model("demo")
    assert plan.total_params + plan.mtp_params == sum(sizes.values()) - biases
    assert plan.buffers == biases


@pytest.mark.parametrize("format", ["f32", "bf16", "int8", "int4", "q8_0", "mxfp4"])
def test_a_loaded_model_takes_the_bytes_that_are_planned(ops: Any, format: str) -> None:
    loading = pytest.importorskip("moekit.loading")
    if format not in ops.format_names():
        pytest.skip(f"this build has no {format}")
    held = sum(loading.demo_model(format).memory().values())
    # narrow matrices are padded to whole groups and panels: a few per cent in so small a model
    assert plan_model("demo", format).loaded_bytes == pytest.approx(held, rel=0.03)


def test_packed_weights_take_the_bytes_that_are_planned() -> None:
    pytest.importorskip("moekit._core")
    import numpy as np

    from moekit import ops

    rows, cols = 256, 1024  # whole panels and blocks: nothing is padded
    matrix = np.random.default_rng(0).standard_normal((rows, cols), dtype=np.float32)
    checked = []
    # In memory q3_k and iq4_xs have whole bytes for six-bit scales, tq1_0 two bits a weight, and
    # fp8 a scale for each row: bytes a row more than in a file, for 256 weights.
    wider = {"q3_k": 4, "iq4_xs": 2, "tq1_0": 12, "fp8": 7.9375}
    for name in ops.format_names():
        packed = ops.pack(matrix, name)
        planned = find_format(name).nbytes(rows, cols)
        planned += rows * cols // 256 * wider.get(name, 0)
        # a panel of sixteen rows ends on a cache line
        assert 0 <= packed.nbytes - planned <= rows // 16 * 64, name
        checked.append(name)
    assert {"f32", "bf16", "int8"} <= set(checked)
