"""Counters, margins, policies, joined records, and the traces of other engines."""

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moekit as mk

FAMILIES = ["mixtral", "qwen3_moe", "deepseek_v3"]
IDS = [5, 17, 3, 90, 41, 41, 8]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, checkpoint_maker: Any) -> Any:
    return mk.load(checkpoint_maker(request.param, 0)[1])


def test_counters_count_what_a_record_holds(model: Any) -> None:
    with model.record(counters=True) as counters, model.record() as record:
        model.forward([IDS, [1]])
        model.generate(IDS, max_new_tokens=4)
    with model.record(counters=True) as alone:
        model.forward([IDS, [1]])
        model.generate(IDS, max_new_tokens=4)
    for found in (counters, alone):
        np.testing.assert_array_equal(found.counts, record.counts)
        assert found.counts.dtype == np.int64
        assert len(found) == len(record)
        assert found.layers.tolist() == record.layers.tolist()
        measured, expected = mk.analysis.load(found), mk.analysis.load(record)
        for mine, theirs in zip(measured, expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_counters_see_many_passes_and_interventions(model: Any) -> None:
    layer = model.moe_layers[-1]
    with model.record(counters=True) as counters, model.intervene(mask={(layer, 2)}):
        for _ in range(600):
            model.forward([7])
    counts = counters.counts
    assert (counts.sum(axis=1) == 1200).all()
    assert counts[-1, 2] == 0
    with pytest.raises(ValueError, match="counts alone"):
        model.record(counters=True, logits=True)


def test_an_interrupted_pass_is_not_counted(talker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with talker.record(counters=True) as counters:
        talker.forward([1, 2])
        last = type(talker.layers[-1])
        monkeypatch.setattr(last, "__call__", _stopping(last.__call__, len(talker.layers) - 1))
        with pytest.raises(KeyboardInterrupt):
            talker.forward([3, 4, 5])
        monkeypatch.undo()
        talker.forward([6])
    assert len(counters) == 3
    assert (counters.counts.sum(axis=1) == 6).all()


def test_passes_that_run_at_a_time_are_counted_apart(talker: Any) -> None:
    """A pass inside of another's router, and passes of threads that have the block's context."""
    seen: list[int] = []
    depth = 0

    def asks(x: Any, logits: Any) -> Any:
        nonlocal depth
        if depth == 0:
            depth = 1
            talker.forward([1, 2])
            seen.append(len(counters))
            depth = 0
            if len(x) == 3:
                raise RuntimeError("on purpose")
        return logits

    with (
        talker.record(counters=True) as counters,
        talker.intervene(router={talker.moe_layers[-1]: asks}),
    ):
        talker.forward([3, 4, 5, 6])
        with pytest.raises(RuntimeError, match="on purpose"):
            talker.forward([3, 4, 5])
        talker.forward([3])
    assert seen == [2, 8, 10]  # while the outer pass runs, and after one that failed
    assert len(counters) == 11
    assert (counters.counts.sum(axis=1) == 22).all()
    with (
        talker.record(counters=True) as outer,
        talker.record(counters=True) as inner,
        ThreadPoolExecutor(4) as pool,
    ):
        runs = [pool.submit(copy_context().run, talker.forward, [n, n + 1]) for n in range(40)]
        for run in runs:
            run.result()
    with talker.record() as record:
        talker.forward([[n, n + 1] for n in range(40)])
    for counters in (outer, inner):
        np.testing.assert_array_equal(counters.counts, record.counts)
        assert len(counters) == 80


def test_counters_of_blocks_in_each_other_end_one_by_one(talker: Any) -> None:
    with talker.record(counters=True) as outer:
        talker.forward([1])
        with talker.record(counters=True) as inner:
            talker.forward([2, 3])
            assert (len(outer), len(inner)) == (3, 2)
        talker.forward([4, 5, 6])
    assert (len(outer), len(inner)) == (6, 2)
    assert (outer.counts.sum(axis=1) == 12).all() and (inner.counts.sum(axis=1) == 4).all()


def test_an_ablation_counts_its_whole_passes_alone(talker: Any) -> None:
    with talker.record(counters=True) as counters:
        mk.analysis.ablate(talker, [[1, 2, 3, 4]])
        assert len(counters) == 4
        talker.forward([5])
    assert len(counters) == 5
    assert (counters.counts.sum(axis=1) == 10).all()


def _stopping(call: Any, at: int) -> Any:
    def stop(self: Any, x: Any, batch: Any = None, layer: int = 0) -> Any:
        if layer == at:
            raise KeyboardInterrupt
        return call(self, x, batch, layer)

    return stop


def test_margins_are_of_the_scores_that_rank(checkpoint_maker: Any) -> None:
    model = mk.load(checkpoint_maker("deepseek_v3", 0)[1])
    with model.record(logits=True, margins=True) as record:
        model.forward(IDS)
    assert record.logits is not None and record.margins is not None
    for place, layer in enumerate(record.layers):
        bias = model.layers[layer].moe.router.rule["select_bias"]
        scores = 1 / (1 + np.exp(-record.logits[:, place].astype(np.float64))) + bias
        ranked = -np.sort(-scores, axis=1)
        np.testing.assert_allclose(
            record.margins[:, place], ranked[:, 1] - ranked[:, 2], rtol=1e-4, atol=1e-6
        )
    assert (record.margins >= 0).all()
    # Against the scores: the margin of a forced choice is negative.
    with model.record(margins=True) as forced, model.intervene(force={("*", 0), ("*", 1)}):
        model.forward(IDS)
    assert forced.margins is not None and (forced.margins < 0).any()


def test_many_passes_are_laid_out_as_they_came(
    checkpoint_maker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folded often or never, ranked at once or later: the same columns; K may change between."""
    model = mk.load(checkpoint_maker("deepseek_v3", 1)[1])
    first = model.moe_layers[0]

    def table(folds: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> mk.Record:
        monkeypatch.setattr("moekit.record._FOLD_PASSES", folds)
        monkeypatch.setattr("moekit.routing._KEPT_LOGITS", kept)
        # One policy for several K: requests, each with its own.
        with (
            model.record(logits=kept == 7, margins=True) as record,
            model.intervene(requests=[{"k": 3}, {"k": {first: 1}}, {}]),
        ):
            cache = model.new_cache()
            model.forward([[1, 2], [3], [4, 5, 6]], cache=cache)
            for token in range(20):
                model.forward([[token], [token + 1], [7]], cache=cache)
            model.forward([[9, 9, 9]])
        return record

    tables = [table(f, k, monkeypatch) for f, k in ((1000, 1 << 16), (3, 1 << 16), (2, 0), (5, 7))]
    assert len(tables[0]) == 6 + 60 + 3
    assert tables[0].experts.shape[2] == 3
    for other in tables[1:]:
        assert other == tables[0]
        assert other.margins is not None and tables[0].margins is not None
        np.testing.assert_array_equal(other.margins, tables[0].margins)
    assert tables[3].logits is not None and tables[0].logits is None
    assert tables[0].sequences.tolist()[:6] == [0, 0, 1, 2, 2, 2]
    assert tables[0].sequences.tolist()[-3:] == [3, 3, 3]
    assert tables[0].positions.tolist()[6:12] == [2, 1, 3, 3, 2, 4]


def test_what_a_caller_does_with_its_ids_leaves_the_record(model: Any) -> None:
    ids = np.array(IDS, np.int32)
    with model.record() as record:
        model.logits([ids])
        ids[:] = 1
    assert record.ids.tolist() == IDS


def test_margins_are_kept_in_files(model: Any, tmp_path: Path) -> None:
    with model.record(margins=True) as record, model.intervene(mask={("*", 1)}):
        model.forward(IDS)
    record.save(tmp_path / "t.npz")
    loaded = mk.Record.load(tmp_path / "t.npz")
    assert loaded.margins is not None and record.margins is not None
    assert loaded.margins.tobytes() == record.margins.tobytes()
    assert loaded.policy == record.policy
    assert loaded == record
    with np.load(tmp_path / "t.npz", allow_pickle=False) as file:
        assert file["policy"].tobytes().decode().startswith('"')


def test_one_record_holds_one_policy(model: Any) -> None:
    with model.record() as record:
        model.forward(IDS)
        with model.intervene():
            model.forward(IDS)
        with (
            model.intervene(mask={("*", 0)}),
            pytest.raises(ValueError, match=r"mask \{0\}.*one record holds one policy"),
        ):
            model.forward(IDS)
        model.forward(IDS)
    assert len(record) == 3 * len(IDS)
    with model.intervene(mask={("*", 0)}), model.record() as masked:
        model.forward(IDS)
    assert masked.policy == f"{record.policy}; " + "; ".join(
        f"layer {n}: mask {{0}}" for n in model.moe_layers
    )
    with pytest.raises(ValueError, match=r"one policy is required"):
        mk.Record.join([record, masked])
    with pytest.raises(ValueError, match=r"one policy is required"):
        mk.Record.join([record, record.edit(drop=[1])])


def test_a_replay_keeps_the_policy_it_was_recorded_under(model: Any) -> None:
    with model.intervene(k=1), model.record() as record:
        model.forward(IDS)
    with model.record() as replayed:
        model.forward(IDS, routing=record)
    assert replayed.policy == record.policy
    assert mk.Record.join([record, replayed]).experts.shape[0] == 2 * len(IDS)
    edited = record.edit(drop=[0]).edit(drop=[1])
    assert edited.policy == f"{record.policy}; edited"


def test_other_weights_and_formats_are_other_policies(checkpoint_maker: Any) -> None:
    policies = set()
    for seed, format in [(0, "f32"), (1, "f32"), (0, "int8")]:
        path = checkpoint_maker("mixtral", seed)[1]
        policies.add(mk.load(path, format=format).routing_policy())
        policies.add(mk.load(path, format=format).routing_policy())
    assert len(policies) == 3


def test_joined_records_number_their_sequences_on(model: Any) -> None:
    parts = []
    for batch in ([IDS, [1, 2]], [[3]], [[4, 5], [6]]):
        with model.record(logits=True, margins=True) as record:
            model.forward(batch)
        parts.append(record)
    whole = mk.Record.join(parts)
    batch = [IDS, [1, 2], [3], [4, 5], [6]]
    assert whole.sequences.max() == 4
    expected = model.forward(batch)
    for mine, theirs in zip(model.forward(batch, routing=whole), expected, strict=True):
        assert mine.tobytes() == theirs.tobytes()
    assert whole.logits is not None and whole.margins is not None
    assert len(whole.logits) == len(whole.margins) == len(whole)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.int64, np.uint16])
def test_traces_of_serving_engines_replay(model: Any, dtype: Any) -> None:
    """vLLM and SGLang give ids [tokens, all layers, K] without weights."""
    with model.record() as record:
        expected = model.forward(IDS)
    every = np.zeros((len(IDS), len(model.layers), 2), dtype)
    every[:, model.moe_layers] = record.experts
    trace = mk.Record.from_routed_experts(every)
    assert model.forward(IDS, routing=trace).tobytes() == expected.tobytes()
    # SGLang leaves the last token out, which was sampled and never read.
    shorter = mk.Record.from_routed_experts(every[:-1])
    assert model.forward(IDS[:-1], routing=shorter).tobytes() == expected[:-1].tobytes()
    sparse = mk.Record.from_routed_experts(record.experts, model.moe_layers, num_experts=5)
    assert sparse.num_experts.tolist() == [5] * len(model.moe_layers)
    assert model.forward(IDS, routing=sparse).tobytes() == expected.tobytes()
    with model.record() as replayed:
        model.forward(IDS, routing=trace)
    np.testing.assert_array_equal(replayed.experts, record.experts)
    assert replayed.weights.tobytes() == record.weights.tobytes()
    with pytest.raises(ValueError, match="it has no weights"):
        _ = trace.weights


def test_traces_of_a_batch_and_their_edits(model: Any, tmp_path: Path) -> None:
    batch = [IDS, [1, 2, 3]]
    with model.record() as record:
        expected = model.forward(batch)
    parts = [record.experts[record.sequences == i] for i in range(2)]
    trace = mk.Record.from_routed_experts(parts, model.moe_layers)
    for mine, theirs in zip(model.forward(batch, routing=trace), expected, strict=True):
        assert mine.tobytes() == theirs.tobytes()
    trace.save(tmp_path / "t.npz")
    loaded = mk.Record.load(tmp_path / "t.npz")
    assert loaded == trace and loaded.weights_or_none is None
    dropped = loaded.edit(drop=[0])
    assert (dropped.experts != 0).all() and dropped.weights_or_none is None
    with pytest.raises(ValueError, match="no weights that reweight"):
        trace.edit(reweight={0: 2.0})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"num_experts": np.array([2**31 - 1])}, "num_experts is"),
        ({"num_experts": np.array([-5])}, "experts are"),
        ({"texts": np.frombuffer(b'["a", "b"]', np.uint8)}, "texts has 2 entries"),
        ({"texts": np.frombuffer(b"[" * 10**6, np.uint8)}, "no routing record"),
        ({"policy": np.frombuffer(b"{", np.uint8)}, "no routing record"),
        ({"version": np.array(99)}, "version 99"),
        ({"sequences": np.zeros(7)}, "sequences has shape"),
        ({"margins": np.zeros((1, 2))}, "margins has shape"),
        ({"on_input": np.zeros(3)}, "on_input has shape"),
        ({"logits": np.zeros((2, 2, 2))}, "logits has shape"),
        ({"experts": np.full((1, 1, 1), 2**40)}, r"t\.npz"),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    whole = {"experts": np.zeros((1, 1, 1), np.int32), "weights": np.ones((1, 1, 1)), **arrays}
    np.savez(tmp_path / "t.npz", **whole)
    with pytest.raises(mk.FileError, match=message):
        mk.Record.load(tmp_path / "t.npz")


def test_layers_stand_once() -> None:
    with pytest.raises(ValueError, match="each once"):
        mk.Record(np.zeros((1, 2, 1), int), np.ones((1, 2, 1)), [3, 3])


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (np.zeros((3, 2)), "integers"),
        (np.zeros((3, 2, 1)), "integers"),
        ([np.zeros((3, 2, 1), int), np.zeros((3, 3, 1), int)], "the same layers and K"),
        (np.full((1, 1, 1), -2), "routed experts are -2"),
        (np.full((1, 1, 1), 2**40), "routed experts are"),
    ],
)
def test_arrays_that_are_no_traces(trace: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mk.Record.from_routed_experts(trace)


def test_a_trace_of_another_model_is_refused(model: Any) -> None:
    trace = mk.Record.from_routed_experts(np.full((7, len(model.layers), 2), 5))
    with pytest.raises(ValueError, match="expert 5 in layer"):
        model.forward(IDS, routing=trace)


def test_replay_works_in_parts_over_a_cache(model: Any) -> None:
    with model.record() as record:
        whole = model.forward(IDS)
    cache = model.new_cache()
    parts = [
        model.forward(IDS[a:b], cache=cache, routing=record) for a, b in ((0, 3), (3, 4), (4, 7))
    ]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
