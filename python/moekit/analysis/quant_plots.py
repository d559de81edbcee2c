"""Figures of quantisation, from numbers that are already computed.

Every function returns a `matplotlib.figure.Figure`; `plots.save` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .labels import label_points, spread
from .plots import COLOURS, new_figure

if TYPE_CHECKING:
    from .quant_error import QuantReport


def report_figure(report: QuantReport) -> Any:
    """Agreement by layer, flips by margin, and errors of single experts by their share."""
    figure = new_figure(12, 3.6)
    layers, margins, experts = figure.subplots(1, 3)
    numbers = [row.layer for row in report.layers]
    layers.plot(
        numbers, [100 * r.agreement for r in report.layers], "o-", color=COLOURS[0], label="experts"
    )
    layers.plot(
        numbers, [100 * r.same_set for r in report.layers], "s-", color=COLOURS[1], label="sets"
    )
    layers.set(xlabel="layer", ylabel="chosen by both models (%)", title="Routing", xticks=numbers)
    layers.set_ylim(top=100.5)
    layers.legend(frameon=False)

    heights = [100 * group.flips for group in report.margins]
    margins.bar(range(len(heights)), heights, color=COLOURS[0])
    labels = [f"{group.high:.2g}" for group in report.margins]
    margins.set_xticks(range(len(heights)), labels, rotation=60, fontsize=8)
    margins.set(
        xlabel="margin of the full router, up to", ylabel="other set (%)", title="Flips by margin"
    )

    found = [row for row in report.experts if row.error]
    for i, layer in enumerate(sorted({row.layer for row in found})):
        rows = [row for row in found if row.layer == layer]
        experts.scatter(
            [100 * row.share for row in rows],
            [row.error for row in rows],
            s=14,
            color=COLOURS[i % len(COLOURS)],
            label=f"layer {layer}" if i < len(COLOURS) else None,
        )
    experts.set(
        xlabel="share of the layer's slots (%)", ylabel="relative error", title="Single experts"
    )
    if found:
        experts.set_yscale("log")
        experts.legend(frameon=False, fontsize=8)
    _plain(layers, margins, experts)
    return figure


def errors_by_role(table: Mapping[str, Mapping[str, float]], bits: Mapping[str, float]) -> Any:
    """Error against bits: `table` is format -> role -> mean error, `bits` format -> bits."""
    figure = new_figure(6, 4)
    axes = figure.subplots()
    formats = sorted(table, key=lambda name: bits[name])
    roles = sorted({role for row in table.values() for role in row})
    for i, role in enumerate(roles):
        points = [(bits[f], table[f][role]) for f in formats if table[f].get(role, 0) > 0]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[i % 7], label=role)
    lowest, highest = axes.get_xlim()
    places = [bits[name] for name in formats]
    gap = (highest - lowest) / 45  # as high as a letter
    for name, place, at in zip(formats, places, spread(places, gap), strict=True):
        axes.axvline(place, color="0.9", zorder=0)
        axes.annotate(
            name,
            (place, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(at, 1.06),
            textcoords=("data", "axes fraction"),
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=7,
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.5, "shrinkA": 0},
        )
    axes.set_xlim(lowest, highest)
    axes.set(xlabel="bits per weight, scales included", ylabel="relative error of the outputs")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    _plain(axes)
    return figure


def agreement_by_layer(reports: Mapping[str, QuantReport]) -> Any:
    """Share of experts that both models chose, layer by layer, a line for each model."""
    figure = new_figure(6, 4)
    axes = figure.subplots()
    numbers: list[int] = []
    for i, (name, report) in enumerate(reports.items()):
        numbers = [row.layer for row in report.layers]
        axes.plot(
            numbers,
            [100 * row.agreement for row in report.layers],
            marker="o",
            color=COLOURS[i % 7],
            linestyle="--" if i >= 7 else "-",
            label=name,
        )
    axes.set(xlabel="layer", ylabel="experts chosen by both models (%)", xticks=numbers)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _plain(axes)
    return figure


def against_dense(pairs: Mapping[str, tuple[float, QuantReport]]) -> Any:
    """Divergences of a dense model and of a mixture: format -> (the dense one's, report)."""
    figure = new_figure(8, 4)
    axes = figure.subplots()
    places = list(range(len(pairs)))
    series = {
        "mixture": ([report.kl for _, report in pairs.values()], "o"),
        "mixture, routing held": ([report.kl_experts for _, report in pairs.values()], "s"),
        "dense model": ([kl for kl, _ in pairs.values()], "^"),
    }
    for i, (name, (values, marker)) in enumerate(series.items()):
        axes.plot(places, values, marker, color=COLOURS[i], label=name)
    for place in places:
        axes.axvline(place, color="0.93", zorder=0)
    axes.legend(frameon=False)
    axes.set_xticks(places, list(pairs), rotation=45, fontsize=8)
    axes.set(ylabel="KL (nats a token)", yscale="log")
    _plain(axes)
    return figure


def pareto(series: Mapping[str, Sequence[tuple[str, float, float]]]) -> Any:
    """Bytes against divergence: name of a method -> (label, bytes, KL in nats a token)."""
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    points, labels, colours = [], [], []
    for i, (name, found) in enumerate(series.items()):
        own = [(size / 1e6, kl) for _, size, kl in found]
        axes.plot(
            *zip(*own, strict=True), "os^Dv"[i % 5], color=COLOURS[i % 7], alpha=0.9, label=name
        )
        points += own
        labels += [label for label, _, _ in found]
        colours += [COLOURS[i % 7]] * len(found)
    axes.set(xlabel="megabytes of packed weights", ylabel="KL (nats a token)")
    axes.set_yscale("log")
    axes.margins(x=0.12)
    axes.legend(frameon=False)
    _plain(axes)
    label_points(axes, points, labels, colours)
    return figure


def _plain(*axes: Any) -> None:
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
