"""Pruning, merging, constants and assembling, each with the report that quantised models get."""

from pathlib import Path

import numpy as np
import pytest

import moekit as mk

TEXTS = [p.read_text()[:900] for p in Path(mk.demo_path(), "texts").glob("*.txt")]
IDS = list(range(30, 90))


@pytest.fixture(scope="module")
def model():
    return mk.demo_model()


@pytest.fixture(scope="module")
def scores(model):
    return mk.edit.importance(model, TEXTS, window=256)


def test_measures_agree_with_a_record(model):
    ids = model.tokenizer.encode(TEXTS[0])
    with model.record() as r:
        model.forward(ids)
    slots = len(ids) * 4
    frequency = mk.edit.importance(model, [ids], "frequency")
    weight = mk.edit.importance(model, [ids], "weight")
    for place, layer in enumerate(r.layers):
        np.testing.assert_allclose(frequency[layer], r.counts[place] / slots)
        total = np.bincount(r.experts[:, place].ravel(), r.weights[:, place].ravel(), 32)
        np.testing.assert_allclose(weight[layer], total / len(ids), rtol=1e-5)


def test_reap_is_the_mean_of_weight_times_norm(model, scores):
    found, counts = np.zeros(32), np.zeros(32)
    block = model.layers[1]

    def spy(x, logits):
        a = block.moe.gate.route(logits)
        for t in range(len(x)):
            for e, w in zip(a.experts[t], a.weights[t], strict=True):
                one = mk.Assignment(np.array([[e]], np.int32), np.ones((1, 1), np.float32))
                y = mk.ops.moe_ffn(x[t : t + 1], one, block.moe.experts)
                found[e] += w * np.linalg.norm(y)
                counts[e] += 1
        return a

    text = TEXTS[0][:200]
    with model.intervene(router={1: spy}):
        model.forward(model.tokenizer.encode(text))
    got = mk.edit.importance(model, text)[1]
    np.testing.assert_allclose(got, found / np.maximum(counts, 1), rtol=1e-4)


def test_pruning_is_masking(model):
    """Without the others in the file or with them forbidden: the same model."""
    keep = {1: [0, 3, 4, 7, 9, 30], 3: list(range(5, 32))}
    smaller = mk.edit.prune(model, keep)
    mask = {(n, e) for n, kept in keep.items() for e in range(32) if e not in kept}
    with model.intervene(mask=mask), model.record() as r:
        want = model.forward(IDS)
    with smaller.record() as s:
        got = smaller.forward(IDS)
    np.testing.assert_allclose(got, want, atol=1e-4)
    for layer, kept in keep.items():
        place = r.layer_index(layer)
        np.testing.assert_array_equal(np.array(kept)[s.experts[:, place]], r.experts[:, place])
    assert [smaller.layers[n].moe.experts.count for n in (1, 2, 3, 4)] == [6, 32, 27, 32]
    assert smaller.memory()["experts"] < model.memory()["experts"]
    assert model.layers[1].moe.experts.count == 32


def test_a_pruned_model_is_reported_and_saved(model, scores, tmp_path):
    smaller = mk.edit.prune(model, {1: 24, 2: 28, 3: 20, 4: 24}, scores)
    worst = mk.edit.prune(model, {1: 24, 2: 28, 3: 20, 4: 24}, {n: -s for n, s in scores.items()})
    reports = [mk.quant_report(model, other, TEXTS, window=256) for other in (smaller, worst)]
    assert 0 < reports[0].kl < 0.8 * reports[1].kl
    gone = [row for row in reports[0].experts if row.error is None]
    assert len(gone) == 8 + 4 + 12 + 8
    assert {row.error for row in reports[0].experts} == {None, 0.0}
    mk.quantize(smaller, {}, out=tmp_path / "q")
    read = mk.load(tmp_path / "q")
    assert read.forward(IDS).tobytes() == smaller.forward(IDS).tobytes()
    with pytest.raises(ValueError, match="save"):
        smaller.save(tmp_path / "hf")
    # Twice pruned is pruned once.
    twice = mk.edit.prune(mk.edit.prune(model, {1: range(20)}), {1: range(4, 16)})
    once = mk.edit.prune(model, {1: range(4, 16)})
    assert twice.forward(IDS).tobytes() == once.forward(IDS).tobytes()
    np.testing.assert_array_equal(twice.expert_origin[1], once.expert_origin[1])


def test_merging_equal_experts_changes_nothing(model):
    doubled = mk.assemble(
        model,
        {2: [(model, 2, e // 2) for e in range(32)]},
        {2: model.layers[2].moe.gate},
    )
    merged = mk.edit.merge(doubled, {2: [[0, 1], [6, 7]]})
    np.testing.assert_allclose(merged.forward(IDS), doubled.forward(IDS), atol=1e-5)
    different = mk.edit.merge(model, {2: [[0, 1, 2, 3]]}, {2: np.arange(32.0)})
    assert mk.quant_report(model, different, TEXTS[0]).kl > 0
    up = model.layers[2].moe.experts.up
    mean = sum(e * up.unpack_expert(e) for e in range(4)) / 6
    got = different.layers[2].moe.experts.up
    np.testing.assert_allclose(got.unpack_expert(3), mean, rtol=1e-2, atol=1e-4)
    # The merged expert's memory is there once.
    assert got.nbytes == up.nbytes - 3 * up.nbytes // 32


def test_a_constant_is_the_mean_of_what_it_replaces(model):
    chosen = [(2, 5), (2, 6), (4, 0)]
    fixed = mk.edit.constant(model, chosen, TEXTS, window=256)
    bias = fixed.layers[2].moe.experts.down_bias
    assert not bias[[e for e in range(32) if e not in (5, 6)]].any() and bias[5].any()
    dropped = mk.edit.constant(model, chosen, [[1, 2]])  # tokens that hardly reach them
    texts = TEXTS[1]
    assert mk.quant_report(model, fixed, texts).kl < mk.quant_report(model, dropped, texts).kl
    x = np.random.default_rng(0).normal(size=(3, 256)).astype(np.float32)
    only = mk.Assignment(np.full((3, 1), 5, np.int32), np.ones((3, 1), np.float32))
    y = mk.ops.moe_ffn(x, only, fixed.layers[2].moe.experts)
    np.testing.assert_array_equal(y, np.tile(bias[5], (3, 1)))


def test_a_dense_layer_upcycled_gives_the_same(model):
    upcycled = mk.assemble(model, {0: [(model, 0, 0)] * 8})
    np.testing.assert_allclose(upcycled.forward(IDS), model.forward(IDS), atol=2e-3)
    assert upcycled.moe_layers == [0, 1, 2, 3, 4]
    with upcycled.record() as r:
        upcycled.forward(IDS)
    assert len(np.unique(r.experts[:, 0])) > 2
    # Eight experts, no more memory than one.
    assert upcycled.layers[0].moe.experts.nbytes == model.layers[0].ffn.experts.nbytes


def test_experts_of_several_models_keep_their_formats(model):
    other = mk.demo_model("int8")
    sources = [(model if e % 2 else other, 3, e) for e in range(32)]
    mixed = mk.assemble(model, {3: sources}, {3: model.layers[3].moe.gate})
    bank = mixed.layers[3].moe.experts.up
    assert bank.format == ["int8", "bf16"] * 16
    report = mk.quant_report(model, mixed, TEXTS[0])
    wrong = {row.expert % 2 for row in report.experts if row.error and row.layer == 3}
    assert wrong == {0}


def test_assembled_models_get_the_same_report(model):
    """Where experts do not correspond, their own choices are held; the parts still add up."""
    upcycled = mk.assemble(model, {0: [(model, 0, 0)] * 8})
    report = mk.quant_report(model, upcycled, TEXTS, window=256)
    assert report.kl < 1e-6 and [row.layer for row in report.layers] == [1, 2, 3, 4]
    both = mk.quantize(upcycled, "int4")
    direct, held = (
        mk.quant_report(model, both, TEXTS, window=256, hold_routing=hold) for hold in (False, True)
    )
    assert held.kl_routing == 0.0 and direct.kl_routing != 0.0
    np.testing.assert_allclose(direct.kl_experts, held.kl_experts, rtol=0.2)
    fewer = mk.assemble(model, {3: [(model, 3, e) for e in range(16)]}, k=4)
    report = mk.quant_report(model, fewer, TEXTS, window=256)
    assert [row.layer for row in report.layers] == [1, 2, 4] and report.kl > 0.01
    assert {row.layer for row in report.experts} == {1, 2, 4}
    np.testing.assert_allclose(report.kl, report.kl_experts + report.kl_routing)


def test_merged_and_constant_experts_are_saved_and_assembled_ones_refused(model, scores, tmp_path):
    merged = mk.edit.merge(model, {1: [[0, 1, 2], [4, 5]]}, scores)
    fixed = mk.edit.constant(merged, [(2, 5), (4, 0)], TEXTS, window=256)
    pruned = mk.edit.prune(fixed, {2: range(2, 30)})
    for n, edited in enumerate((merged, fixed, pruned)):
        mk.quantize(edited, {"attention": "int8"}, out=tmp_path / f"q{n}")
        read = mk.load(tmp_path / f"q{n}")
        want = mk.quantize(edited, {"attention": "int8"})
        assert read.forward(IDS).tobytes() == want.forward(IDS).tobytes()
        with pytest.raises(ValueError, match="save"):
            read.save(tmp_path / "hf")
    upcycled = mk.assemble(model, {0: [(model, 0, 0)] * 8})
    for layout in ("moekit", "gptq", "gguf"):
        with pytest.raises(ValueError, match="assembled"):
            mk.quantize(upcycled, "int4_g32", out=tmp_path / "no", layout=layout)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q0", "q1", "q2"]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda m: mk.edit.prune(m, 8), "without scores"),
        (lambda m: mk.edit.prune(m, {0: [1]}), "layers with experts"),
        (lambda m: mk.edit.prune(m, {1: [1, 2, 3]}), "at least 4"),
        (lambda m: mk.edit.prune(m, {1: [1, 1, 2, 3, 4]}), "distinct"),
        (lambda m: mk.edit.prune(m, {1: [32, 1, 2, 3, 4]}), "0 to 31"),
        (lambda m: mk.edit.merge(m, {1: [[0, 1], [1, 2]]}), "two groups"),
        (lambda m: mk.edit.constant(m, [(1, 99)], TEXTS), "0 to 31"),
        (lambda m: mk.edit.importance(m, TEXTS, "beauty"), "beauty"),
        (lambda m: mk.assemble(m, {1: [(m, 0, 0), (m, 1, 0)]}), "gather"),
        (lambda m: mk.assemble(m, {1: [(m, 1, 77)]}), "no expert 77"),
        (lambda m: mk.assemble(m, {9: [(m, 1, 0)]}), "layer 9"),
    ],
)
def test_edits_that_do_not_fit_are_refused(model, call, named):
    with pytest.raises(ValueError, match=named):
        call(model)


def test_long_work_shows_a_bar_where_it_is_wanted(model, capsys):
    layer = model.moe_layers[0]
    text = "The harbour lay quiet under a thin fog."
    for progress in (None, False, True):
        options = {"progress": progress}
        mk.edit.importance(model, [text], **options)
        mk.edit.merge(model, {layer: [[0, 1], [2, 3]]}, **options)
        mk.edit.constant(model, [(layer, 0)], [text], **options)
        shown = capsys.readouterr().err
        for word in ("importance", "merging", "averaging"):
            assert (word in shown) == (progress is True)
