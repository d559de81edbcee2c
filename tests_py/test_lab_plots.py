"""The pictures of the routing laboratory: what they draw, on odd sizes too."""

from typing import Any

import numpy as np
import pytest

import moekit as mk
from moekit import analysis

plots = pytest.importorskip("moekit.analysis.plots")
pytest.importorskip("matplotlib")


def record(tokens: int, sizes: tuple[int, ...] = (5, 9), k: int = 2) -> mk.Record:
    rng = np.random.default_rng(0)
    experts = np.stack(
        [np.stack([rng.permutation(n)[:k] for n in sizes]) for _ in range(tokens)]
    ).reshape(tokens, len(sizes), k)
    return mk.Record(experts, np.ones(experts.shape), [2, 7], num_experts=sizes, ids=[1] * tokens)


def drawn(figure: Any, tmp_path: Any) -> None:
    plots.save(figure, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 3000


def test_coactivation_draws_what_is_measured(tmp_path: Any) -> None:
    r = record(60)
    figure = r.plot("coactivation", layer=2)
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (5, 5)
    expected = analysis.coactivation(r)[0, :5, :5]
    np.testing.assert_allclose(shown[0, 1:], expected[0, 1:])
    assert shown.mask.diagonal().all()
    drawn(figure, tmp_path)
    drawn(record(1).plot("coactivation"), tmp_path)


@pytest.mark.parametrize(("tokens", "window"), [(1, None), (7, 3), (500, None), (90, 500)])
def test_load_over_time_counts_windows(tmp_path: Any, tokens: int, window: int | None) -> None:
    r = record(tokens)
    figure = r.plot("time", layer=7, window=window)
    width = window or max(1, tokens // 80)
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (9, -(-tokens // width))
    first = np.bincount(r.experts[:width, 1].ravel(), minlength=9)
    np.testing.assert_allclose(shown[:, 0], first / (first.sum() / 9))
    drawn(figure, tmp_path)


def test_heatmaps_of_counters_and_of_large_models(tmp_path: Any) -> None:
    model = mk.demo_model()
    with model.record(counters=True) as counters:
        model.forward([5, 6, 7])
    drawn(counters.plot(), tmp_path)
    rng = np.random.default_rng(1)
    wide = mk.Record(
        rng.integers(0, 384, (40, 61, 8)), np.ones((40, 61, 8)), num_experts=[384] * 61
    )
    drawn(wide.plot(), tmp_path)


def test_pictures_of_the_measures(tmp_path: Any) -> None:
    model = mk.demo_model()
    text = "The old man looked at the sea and said nothing at all."
    records = {name: record(90) for name in ("one", "two", "three")}
    found = analysis.specialisation(records, resamples=20, permutations=20)
    figure = plots.specialisation_figure(found)
    assert [axis.get_title(loc="left") for axis in figure.axes[2:5]] == ["one", "two", "three"]
    drawn(figure, tmp_path)
    ablation = analysis.ablate(model, text, layers=[4], experts=range(3), progress=False)
    drawn(plots.ablation_map(ablation), tmp_path)
    profiles = analysis.profile({"a": text, "b": text[::-1]}, model)
    intents = [analysis.intent(model, p, text, (0, 1)) for p in profiles.values()]
    figure = plots.intent_figure(*intents)
    numbers = [text.get_text() for text in figure.axes[1].texts if text.get_text()]
    assert numbers == ["0", "1"] * 2
    drawn(figure, tmp_path)
    stream = analysis.balance_stream(model, text, 0.01, window=6)
    figure = plots.stream_figure(stream)
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), stream.kl)
    drawn(figure, tmp_path)


def test_saturation_is_drawn_by_checkpoint_or_by_layer(tmp_path: Any) -> None:
    final, first = record(40), record(40)
    swapped = final.edit(layer=7, swap={0: 1, 1: 0})
    half = final.edit(swap={0: 1, 1: 0}, tokens=slice(0, 20))
    figure = plots.saturation_figure({"1k": swapped, "2k": half, "3k": first}, final)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines[:2]}
    for place, layer in enumerate(("2", "7")):
        expected = [analysis.saturation(r, final)[place] for r in (swapped, half, first)]
        np.testing.assert_array_equal(lines[layer], expected)
    assert lines["2"][0] == 1 > lines["7"][0]
    drawn(figure, tmp_path)
    figure = plots.saturation_figure({"only": swapped}, final)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    np.testing.assert_array_equal(heights, analysis.saturation(swapped, final))
    drawn(figure, tmp_path)
    with pytest.raises(ValueError, match="no earlier"):
        plots.saturation_figure({}, final)
    with pytest.raises(ValueError, match="same text"):
        plots.saturation_figure({"a": record(39)}, final)


def test_the_command_draws_saturation(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from moekit.cli.main import main

    final = record(40)
    final.edit(layer=7, swap={0: 1, 1: 0}).save(tmp_path / "early.npz")
    final.save(tmp_path / "last.npz")
    paths = [str(tmp_path / name) for name in ("early.npz", "last.npz")]
    assert main(["plot", *paths, "--kind", "saturation", "--out", str(tmp_path / "s.png")]) == 0
    share = analysis.saturation(final.edit(layer=7, swap={0: 1, 1: 0}), final)[1]
    assert f"100.0% {share:6.1%}" in capsys.readouterr().out
    assert (tmp_path / "s.png").stat().st_size > 3000
    assert main(["plot", paths[0], "--kind", "saturation"]) == 2


def test_labels_cover_neither_each_other_nor_points(tmp_path: Any) -> None:
    """Methods by formats as the quantisation notebook draws them, several of one size."""
    from moekit.analysis import quant_plots

    bits = {"int8": 8.0, "q6_k": 6.6, "int4": 4.1, "mxfp4": 4.25, "q4_k": 4.5, "int4_g32": 4.5,
            "int3_g32": 3.5, "q3_k": 3.44, "q2_k": 2.63, "int2_g32": 2.5}  # fmt: skip
    series = {
        method: [(name, 1e6 * b, 2.0 ** (-1.6 * b - i)) for name, b in bits.items()]
        for i, method in enumerate(("nearest", "GPTQ"))
    }
    figure = quant_plots.pareto(series)
    drawn(figure, tmp_path)
    figure.draw_without_rendering()  # saving has drawn it at another scale
    axis = figure.axes[0]
    texts = [text for text in axis.texts if text.get_text()]
    assert sorted(text.get_text() for text in texts) == sorted([*bits, *bits])
    boxes = [text.get_window_extent() for text in texts]
    dots = axis.transData.transform([text.xy for text in texts])
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.contains(*dot) for dot in dots)
    table = {name: {"up": 2.0**-b, "down": 3.0**-b} for name, b in bits.items()}
    figure = quant_plots.errors_by_role(table, bits)
    drawn(figure, tmp_path)
    figure.draw_without_rendering()  # saving has drawn it at another scale
    texts = [text for text in figure.axes[0].texts if text.get_text() in bits]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) == len(bits)
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])


@pytest.mark.parametrize("seed", range(5))
def test_places_are_spread_by_the_least_that_is_needed(seed: int) -> None:
    from moekit.analysis.labels import spread

    rng = np.random.default_rng(seed)
    places = np.sort(rng.random(20) * rng.choice([1, 4, 40]))
    found = np.array(spread(places.tolist(), 0.3))
    assert (np.diff(found) >= 0.3 - 1e-9).all()
    best = ((found - places) ** 2).sum()
    for _ in range(200):  # no other that keeps the gap moves the places less
        other = np.maximum.accumulate(found - 0.3 * np.arange(20) + rng.normal(0, 0.05, 20))
        assert ((other + 0.3 * np.arange(20) - places) ** 2).sum() >= best - 1e-9
    assert spread([], 1) == []
    assert spread([0, 10], 1) == [0, 10]


def test_mistakes_are_named() -> None:
    for options, text in [
        ({"kind": "time", "window": 0}, "window is 0"),
        ({"kind": "time", "layer": 3}, "layer 3; recorded are"),
        ({"kind": "coactivation", "layer": 3}, "layer 3; recorded are"),
    ]:
        with pytest.raises(ValueError, match=text):
            record(4).plot(**options)
