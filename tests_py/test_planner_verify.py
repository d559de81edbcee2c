"""--verify: the synthetic model has the plan's matrices, and predictions are sums of terms."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import moekit
from moekit.planner import catalog, find_format, find_machine, plan_model
from moekit.planner.kernel_calls import kinds_of
from moekit.planner.roofline import step_terms
from moekit.planner.synthetic import resident_share, shrink

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


@pytest.mark.parametrize("name", sorted(catalog()))
def test_every_built_in_model_shrinks(name: str) -> None:
    small = shrink(plan_model(name, "int8"))
    made = small.total_params - (1 - resident_share(small, 10**9)) * small.components["routed"]
    assert made <= 4 * 10**9
    assert small.bytes_per_token > 0
    assert sum(kind.count for kind in kinds_of(small)) > 0


@pytest.fixture(scope="module")
def ops() -> Any:
    pytest.importorskip("moekit._core")
    from moekit import ops

    if not hasattr(ops, "Assignment"):
        pytest.skip("this build has no router")
    return ops


@pytest.mark.parametrize("format", ["f32", "int8", "q4_k"])
def test_a_prediction_is_the_sum_of_its_terms(ops: Any, format: str) -> None:
    from moekit.planner.verify import verify

    plan = plan_model(TINY, format)
    found = verify(plan, prompt=16, seconds=0.01, threads=1)
    small = shrink(plan)
    assert found.weights == small.total_params
    assert found.threads == 1
    # q k v o of six layers, a router and a block of five, gate up down of the dense one, the head
    assert found.calls == 6 * 4 + 5 * 2 + 3 + 1
    for check, tokens in zip(found.checks, (1, 16), strict=True):
        seconds = sum(term.calls * term.seconds for term in check.terms)
        assert check.predicted == pytest.approx(tokens / seconds)
        assert check.ratio == check.measured / check.predicted
        assert check.measured > 0
        assert check.as_run > 0
        # every product of the model is a term: bytes and work add up to the planner's own
        work = sum(term.calls * term.flops for term in check.terms)
        assert work == tokens * small.flops_per_token
        read = sum(term.calls * term.nbytes for term in check.terms if term.product)
        assert read == pytest.approx(sum(step_terms(small, 0, 1, tokens)))
    figures = json.loads(json.dumps(found.to_dict()))
    assert figures["checks"][0]["phase"] == "decode"
    assert figures["checks"][1]["terms"][0]["seconds"] > 0


def test_terms_name_every_matrix_once(ops: Any) -> None:
    plan = shrink(plan_model(TINY, "int4"))
    kinds = kinds_of(plan)
    assert sum(kind.count for kind in kinds) == 6 * 4 + 5 * 2 + 3 + 1
    block = next(kind for kind in kinds if kind.call.fused)
    up, down = block.call.products
    assert (up.rows, up.cols, up.experts, up.top_k) == (2 * 48, 64, 8, 2)
    assert (down.rows, down.cols) == (64, 48)
    assert block.count == 5
    assert {name for kind in kinds for name in kind.names} >= {"router", "head", "experts down"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clock": "sun"}, "clock is 'sun'"),
        ({"prompt": 0}, "prompt is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"budget": -1}, "budget is -1"),
    ],
)
def test_bad_options_are_named(ops: Any, options: dict[str, Any], message: str) -> None:
    from moekit.planner.verify import verify

    with pytest.raises(ValueError, match=message):
        verify(plan_model(TINY), **options)


def test_too_large_a_layer_says_what_it_takes(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from moekit.planner import verify as module

    monkeypatch.setattr(module, "free_bytes", lambda: 10**9)
    with pytest.raises(RuntimeError, match=r"1\.0 GB are free"):
        module.verify(plan_model("deepseek-v3"))


def test_experts_beyond_the_budget_share_memory(ops: Any) -> None:
    from moekit.planner.synthetic import SyntheticModel

    small = shrink(plan_model(TINY, "int8"), 30_000)
    share = resident_share(small, 90_000)
    assert 0 < share < 1
    model = SyntheticModel(small, 90_000)
    assert model.nbytes < 0.8 * SyntheticModel(small, 10**9).nbytes
    for call, run in model.calls:
        if call.fused:
            assert call.experts == 8
            run(3)


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

    with pytest.raises(RuntimeError, match="no kernels for q8_k"):
        verify(plan_model(TINY, "q8_k"))


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
        model.step(1)
    assert seen["matmul"] + seen["moe_ffn"] == 20 * len(model.calls)
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


@pytest.mark.parametrize(
    "format", ["f32", "bf16", "int8", "int4", "q8_0", "mxfp4", "q4_k", "tq1_0"]
)
def test_a_loaded_model_takes_the_bytes_that_are_planned(ops: Any, format: str) -> None:
    loading = pytest.importorskip("moekit.loading")
    if format not in ops.format_names():
        pytest.skip(f"this build has no {format}")
    held = sum(loading.demo_model(format).memory().values())
    # latent attention keeps kv_b as two weights, each padded to whole blocks by itself
    assert plan_model("demo", format).loaded_bytes == pytest.approx(held, rel=0.006)


ODD_SIZES = [
    (1, 1),
    (3, 5),
    (15, 31),
    (16, 32),
    (17, 33),
    (48, 80),
    (100, 300),
    (129, 257),
    (255, 1023),
]


def test_packed_weights_take_the_bytes_that_are_planned(ops: Any) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    sizes = [*ODD_SIZES, *((int(r), int(c)) for r, c in rng.integers(1, 300, (6, 2)))]
    for name in ops.format_names():
        for rows, cols in sizes:
            packed = ops.pack(rng.standard_normal((rows, cols), dtype=np.float32), name)
            assert packed.nbytes == find_format(name).packed_bytes(rows, cols), (name, rows, cols)
        bank = ops.pack(rng.standard_normal((3, 33, 70), dtype=np.float32), name)
        assert bank.nbytes == 3 * find_format(name).packed_bytes(33, 70)


def test_a_file_never_takes_more_than_memory(ops: Any) -> None:
    # but for the padding of panels, blocks are the same; the exceptions are wider in memory
    wider = {"q3_k": 114 / 110, "iq4_xs": 138 / 136, "tq1_0": 66 / 54, "fp8": 132 / (128 + 1 / 32)}
    wider |= {"iq1_s": 71 / 50, "iq1_m": 78 / 56, "iq3_xxs": 134 / 98, "iq3_s": 134 / 110}
    wider |= {"iq2_xxs": 102 / 66, "iq2_xs": 106 / 74, "iq2_s": 106 / 82}
    for name in ops.format_names():
        format = find_format(name)
        for rows, cols in ODD_SIZES:
            assert format.nbytes(rows, cols) <= format.packed_bytes(rows, cols)
        exact = format.nbytes(4096, 4096) * wider.get(name, 1.0)
        assert format.packed_bytes(4096, 4096) == pytest.approx(exact, rel=1e-9)
