"""mk.quant_report and moekit check-quant: the split, its invariants, the thresholds."""

import json
from pathlib import Path

import numpy as np
import pytest

import moekit as mk
from moekit.cli.main import main
from moekit.quantization.budget import log_softmax

TEXTS = [p.read_text()[3000:3900] for p in Path(mk.demo_path(), "texts").glob("*.txt")]


@pytest.fixture(scope="module")
def full():
    return mk.demo_model()


@pytest.fixture(scope="module")
def report(full):
    return mk.quant_report(full, mk.quantize(full, "int4"), TEXTS, window=256)


def test_only_routers_quantised_leaves_no_error_of_experts(full):
    quantised = mk.quantize(full, {"router": "int4", "force": True})
    found = mk.quant_report(full, quantised, TEXTS, window=128)
    assert found.kl_experts == 0.0 and not found.token_kl[:, 1].any()
    assert found.kl == found.kl_routing > 0
    assert found.agreement < 1
    assert {row.error for row in found.experts} == {0.0}


def test_held_routing_leaves_no_error_of_routing(full):
    quantised = mk.quantize(full, {"default": "int4", "router": "int4", "force": True})
    found = mk.quant_report(full, quantised, TEXTS, window=128, hold_routing=True)
    assert found.kl_routing == 0.0 and not found.token_kl[:, 2].any()
    assert found.kl == found.kl_experts > 0
    assert found.agreement == 1.0 and {row.same_set for row in found.layers} == {1.0}
    assert {group.flips for group in found.margins} == {0.0}


def test_a_model_equals_itself(full):
    found = mk.quant_report(full, full, TEXTS[0][:300])
    assert (found.kl, found.kl_experts, found.kl_routing) == (0, 0, 0)
    assert found.agreement == found.top1 == 1 and found.passes(1.0, 0.0, 1.0)
    assert found.perplexity_full == found.perplexity_quantised


def test_figures_agree_with_their_definitions(full, report):
    quantised = mk.quantize(full, "int4")
    ids = [np.array(full.tokenizer.encode(text), np.int32) for text in TEXTS]
    windows = [part[i : i + 256] for part in ids for i in range(0, len(part), 256)]
    windows = [part for part in windows if len(part) > 1]
    kl, losses, agreements = [], [], []
    for part in windows:
        with full.record() as a:
            p = log_softmax(full.forward(part))
        with quantised.record() as b:
            q = log_softmax(quantised.forward(part))
        h = log_softmax(quantised.forward(part, routing=a))
        kl += [(np.exp(p) * (p - q)).sum(1), (np.exp(p) * (p - h)).sum(1)]
        losses.append([-p[np.arange(len(part) - 1), part[1:]].mean(), len(part) - 1])
        for t in range(len(part)):
            for n in range(4):
                both = set(a.experts[t, n].tolist()) & set(b.experts[t, n].tolist())
                agreements.append(len(both) / 4)
    np.testing.assert_allclose(report.kl, np.concatenate(kl[::2]).mean(), rtol=1e-12)
    np.testing.assert_allclose(report.kl_experts, np.concatenate(kl[1::2]).mean(), rtol=1e-12)
    np.testing.assert_allclose(report.kl_routing, report.kl - report.kl_experts, rtol=1e-9)
    loss = sum(mean * n for mean, n in losses) / sum(n for _, n in losses)
    np.testing.assert_allclose(report.perplexity_full, np.exp(loss), rtol=1e-9)
    np.testing.assert_allclose(report.agreement, np.mean(agreements), rtol=1e-12)
    assert report.tokens == sum(map(len, windows))
    # What differs most comes first, and its parts add up.
    divergences = [token.kl for token in report.worst]
    assert divergences == sorted(divergences, reverse=True)
    assert divergences[0] == report.token_kl[:, 0].max()
    for token in report.worst:
        np.testing.assert_allclose(token.kl, token.kl_experts + token.kl_routing, atol=1e-12)


def test_narrow_decisions_flip_first(report):
    flips = [group.flips for group in report.margins]
    assert len(flips) == 10 and flips[0] > 3 * flips[-1]
    edges = [edge for group in report.margins for edge in (group.low, group.high)]
    assert edges == sorted(edges)


def test_errors_of_single_experts(full, report):
    quantised = mk.quantize(full, {(2, 9): "int4"})
    found = mk.quant_report(full, quantised, TEXTS, window=256).experts
    wrong = {(row.layer, row.expert): row.error for row in found if row.error}
    assert set(wrong) == {(2, 9)}
    same = next(row for row in report.experts if (row.layer, row.expert) == (2, 9))
    np.testing.assert_allclose(wrong[2, 9], same.error, rtol=1e-6)
    assert len(report.experts) == 4 * 32
    for layer in (1, 2, 3, 4):
        assert abs(sum(row.share for row in report.experts if row.layer == layer) - 1) < 1e-9


def test_models_and_texts_that_do_not_fit_are_refused(full):
    with pytest.raises(ValueError, match="no text"):
        mk.quant_report(full, full, "")
    with pytest.raises(TypeError, match="decoder"):
        mk.quant_report(full, "int4", TEXTS)  # type: ignore[arg-type]


def test_a_broken_model_never_passes(full):
    quantised = mk.quantize(full, "int8")
    broken = mk.demo_model()
    broken.norm.weight[:] = np.nan
    assert not mk.quant_report(full, broken, TEXTS[0][:200]).passes()
    assert mk.quant_report(full, quantised, TEXTS[0][:200]).passes()


def test_command(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(TEXTS[0])
    text = str(tmp_path / "a.txt")
    assert main(["check-quant", "demo", "int8", text, "--json"]) == 0
    good = json.loads(capsys.readouterr().out)
    assert good["passes"] and good["agreement"] > 0.9 and len(good["layers"]) == 4
    assert main(["check-quant", "demo", "int4", text, "--max-kl", "0.001"]) == 1
    assert "beyond a threshold" in capsys.readouterr().out
    picture = str(tmp_path / "p.png")
    assert (
        main(["check-quant", "demo", "int4", text, "--min-agreement", "1", "--plot", picture]) == 1
    )
    assert Path(picture).read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    for wrong in (["demo", "int5", text], ["demo", "int4", str(tmp_path / "none.txt")]):
        assert main(["check-quant", *wrong]) in (1, 2)
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_bars_are_shown_where_they_are_asked_for(full, capsys):
    recipe = {"default": "int4", "budget": 6.0, "candidates": ["int4", "int8"]}
    quantised = mk.quantize(full, recipe, TEXTS[0][:300], progress=True)
    mk.quant_report(full, quantised, TEXTS[0][:300], progress=True)
    shown = capsys.readouterr().err
    for word in ("measuring: 100%", "pricing: 100%", "quantising: 100%", "comparing: 100%"):
        assert word in shown
    mk.quantize(full, "int4", progress=False)
    mk.quant_report(full, quantised, TEXTS[0][:300])
    assert capsys.readouterr().err == ""


def test_figures_are_drawn(full, report, tmp_path):
    pytest.importorskip("matplotlib")
    from moekit.analysis import plots, quant_plots

    figures = {
        "report": quant_plots.report_figure(report),
        "layers": quant_plots.agreement_by_layer({"int4": report}),
        "dense": quant_plots.against_dense({"int4": (0.04, report)}),
        "pareto": quant_plots.pareto({"nearest": [("int4", 1e6, report.kl)]}),
        "roles": quant_plots.errors_by_role({"int4": {"down": 0.01}}, {"int4": 4.1}),
    }
    for name, figure in figures.items():
        plots.save(figure, str(tmp_path / f"{name}.png"))
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_a_dense_model_is_reported_without_routing(full):
    dense = mk.load(Path(__file__).parents[1] / "notebooks" / "dense")
    dense.tokenizer = full.tokenizer
    report = mk.quant_report(dense, mk.quantize(dense, "int4"), TEXTS[0])
    assert report.kl == report.kl_experts > 0 and report.kl_routing == 0
    assert report.layers == report.experts == report.margins == [] and report.agreement == 1
