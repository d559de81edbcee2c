"""Figures of routing, and what all figures are drawn with; the only module that imports matplotlib.

A function takes numbers that are already computed and returns a `matplotlib.figure.Figure`; `save`
writes it. Nothing goes through pyplot, so no window opens and no global state changes. Figures of
the planner are in `plan_plots`, those of quantisation in `quant_plots`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .labels import label_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..counters import Counters
    from ..record import Record
    from .ablation import Ablation
    from .intent import Intent
    from .specialisation import Specialisation
    from .stream import BalancedStream

# Okabe and Ito's colours: told apart by every kind of colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def new_figure(width: float, height: float) -> Any:
    """An empty Figure, or an ImportError that says what to install."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install moekit[plots]") from error
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure; the ending chooses the format (png, svg, pdf)."""
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ValueError(f"[plot] {os.fspath(path)} cannot be written: {error}") from None


def plain(axis: Any, title: str, x: str, y: str) -> None:
    """Title and names of an axis, a faint grid and no frame."""
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _expert_axis(axis: Any, width: int) -> None:
    """Marks at whole numbers, few enough to read."""
    step = max(1, -(-width // 16))
    axis.set_xticks(range(0, width, step))


def _grid(values: Any, layers: Any, title: str, scale: str, **colours: Any) -> Any:
    """A heatmap of layers by experts; masked cells show the grey or white behind them."""
    rows, width = values.shape
    figure = new_figure(min(16.0, max(5.5, 3.2 + width * 0.14)), min(14.0, 1.6 + rows * 0.32))
    axis = figure.subplots()
    image = axis.imshow(values, aspect="auto", interpolation="none", **colours)
    axis.set_yticks(range(rows), [str(n) for n in layers])
    _expert_axis(axis, width)
    plain(axis, title, "expert", "layer")
    axis.grid(False)
    figure.colorbar(image, ax=axis, label=scale)
    return figure


def load_heatmap(record: Record | Counters) -> Figure:
    """Share of the tokens that each expert served, layer by layer; an even load is 1 in the scale.

    The scale is the load relative to an even one, so layers with other numbers of experts compare.
    Experts that served no token are grey; cells beyond a layer's experts stay white.
    """
    import numpy as np
    from matplotlib.colors import Normalize

    counts = record.counts.astype(np.float64)
    experts = record.num_experts
    even = counts.sum(axis=1, keepdims=True) / np.maximum(experts, 1)[:, None]
    load = counts / np.maximum(even, 1e-12)
    beyond = np.arange(counts.shape[1]) >= experts[:, None]
    shown = np.ma.masked_array(load, beyond | (counts == 0))
    top = max(2.0, float(load.max(initial=0)))
    figure = _grid(
        shown,
        record.layers,
        f"Experts used by {len(record)} tokens",
        "load (even = 1)",
        cmap="viridis",
        norm=Normalize(0, top),
    )
    unused = np.ma.masked_array(np.ones_like(load), beyond | (counts > 0))
    figure.axes[0].imshow(
        unused, aspect="auto", cmap="Greys", norm=Normalize(0, 4), interpolation="none", zorder=0
    )
    if (~unused.mask).any():
        figure.axes[0].set_xlabel("expert (grey: unused)")
    result: Figure = figure
    return result


def coactivation_map(record: Record, layer: int | None = None) -> Figure:
    """How often experts of one layer are chosen together: P(column | row).

    The scale ends at the largest value off the diagonal. `layer`: the model's number; the middle of
    those recorded by default. Experts that were never chosen are grey.
    """
    import numpy as np

    from .load import coactivation

    place = len(record.layers) // 2 if layer is None else record.layer_index(layer)
    count = int(record.num_experts[place])
    shares = coactivation(record)[place, :count, :count]
    np.fill_diagonal(shares, np.nan)
    figure = new_figure(6.4, 5.4)
    axis = figure.subplots()
    axis.set_facecolor("0.85")
    image = axis.imshow(
        np.ma.masked_invalid(shares), cmap="magma", interpolation="none", vmin=0, aspect="equal"
    )
    _expert_axis(axis, count)
    step = max(1, -(-count // 16))
    axis.set_yticks(range(0, count, step))
    plain(
        axis,
        f"Experts of layer {record.layers[place]} chosen together",
        "also chosen",
        "where this expert is chosen",
    )
    axis.grid(False)
    figure.colorbar(image, ax=axis, label="share of the row's tokens")
    result: Figure = figure
    return result


def load_over_time(record: Record, layer: int | None = None, window: int | None = None) -> Figure:
    """The load of one layer's experts from token to token, in windows; below it, how uneven it is.

    `layer`: the model's number; the middle of those recorded by default. `window`: tokens of a
    column; by default about 80 columns are drawn.
    """
    import numpy as np

    from .load import load

    place = len(record.layers) // 2 if layer is None else record.layer_index(layer)
    count, tokens = int(record.num_experts[place]), len(record)
    if not tokens:
        raise ValueError("[plot] the record has no tokens")
    if window is not None and window < 1:
        raise ValueError(f"[plot] window is {window}; 1 or more is required")
    width = max(1, tokens // 80) if window is None else window
    columns = -(-tokens // width)
    chosen = record.experts[:, place]
    column = np.arange(tokens)[:, None] // width
    used = chosen >= 0
    flat = (column * count + chosen)[used]
    counts = np.bincount(flat, minlength=columns * count).reshape(columns, count)
    even = np.maximum(counts.sum(axis=1, keepdims=True) / count, 1e-12)
    figure = new_figure(9, 5.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges = (-0.5, columns * width - 0.5, count - 0.5, -0.5)
    image = top.imshow(
        (counts / even).T, aspect="auto", cmap="viridis", interpolation="none", extent=edges, vmin=0
    )
    plain(top, f"Load of layer {record.layers[place]} along the text", "", "expert")
    top.grid(False)
    figure.colorbar(image, ax=top, label="load (even = 1)")
    at = np.arange(columns) * width + (width - 1) / 2
    bottom.plot(at, load(counts).max_violation, color=COLOURS[1], linewidth=1.2)
    plain(bottom, "", f"token (windows of {width})", "max violation")
    bottom.set_ylim(bottom=0)
    for boundary in np.flatnonzero(np.diff(record.sequences)) + 0.5:
        if len(np.unique(record.sequences)) <= 12:
            top.axvline(boundary, color="white", linewidth=1)
    result: Figure = figure
    return result


def specialisation_figure(found: Specialisation) -> Figure:
    """What domain and word explain of the routing, with interval and null; a panel per domain."""
    import numpy as np

    layers = [str(n) for n in found.layers]
    domains = len(found.domains)
    columns = min(domains, 2)
    rows = -(-domains // columns)
    figure = new_figure(11, 3.2 + 0.9 * rows + 0.3 * rows * len(layers))
    whole = figure.add_gridspec(1 + rows, 2, height_ratios=[2.6, *[0.9 + 0.3 * len(layers)] * rows])
    for place, (title, strength) in enumerate(
        (
            (f"{domains} domains", found.domain_strength),
            (f"{len(found.ids)} words", found.vocabulary_strength),
        )
    ):
        axis = figure.add_subplot(whole[0, place])
        at = np.arange(len(layers))
        low, high = strength.explained - strength.low, strength.high - strength.explained
        axis.bar(at, 100 * strength.explained, 0.6, color=COLOURS[0], label="beyond chance")
        axis.errorbar(
            at, 100 * strength.explained, 100 * np.array([low, high]), fmt="none", color="black",
            capsize=3,
        )  # fmt: skip
        null = 100 * strength.null
        axis.plot(at, null, "_", color=COLOURS[1], markersize=18, mew=2.5, label="chance")
        axis.set_xticks(at, layers)
        axis.legend(fontsize=8, frameon=False)
        plain(axis, f"Routing explained by {title}", "layer", "% of its entropy")
    top = float(np.nanmax(found.domain, initial=0))
    image: Any = None
    for d, name in enumerate(found.domains):
        axis = figure.add_subplot(whole[1 + d // columns, d % columns])
        image = axis.imshow(
            100 * found.domain[:, :, d], aspect="auto", cmap="viridis", vmin=0, vmax=100 * top,
            interpolation="none",
        )  # fmt: skip
        axis.set_yticks(range(len(layers)), layers)
        _expert_axis(axis, found.domain.shape[1])
        plain(axis, name, "expert", "layer")
        axis.grid(False)
    figure.colorbar(image, ax=figure.axes[2:], label="% of the domain's tokens")
    result: Figure = figure
    return result


def ablation_map(found: Ablation) -> Figure:
    """Change in loss without each expert: red where it is missed, blue where it is not."""
    import numpy as np

    known = np.ma.masked_invalid(found.change)
    # One expert far beyond the others would wash their colours out.
    largest = float(np.quantile(np.abs(known.compressed()), 0.98)) if known.count() else 0.0
    largest = largest or 1.0
    figure = _grid(
        known,
        found.layers,
        f"Loss without one expert (whole model: {found.loss:.3f} nats)",
        "change, nats a token",
        cmap="RdBu_r",
        vmin=-largest,
        vmax=largest,
    )
    result: Figure = figure
    return result


def intent_figure(*found: Intent) -> Figure:
    """Share of the profile's experts over the strength, and what it costs in KL."""
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    for colour, one in zip(COLOURS, found, strict=False):
        left.plot(one.strengths, 100 * one.share, "o-", color=colour, label=one.name)
        right.plot(one.kl, 100 * one.share, "o-", color=colour, label=one.name)
    title = "Routing weight on the profile's experts"
    plain(left, title, "strength", "% of the routing weight")
    plain(right, "What it costs (numbers: strength)", "KL, nats a token", "")
    for axis in (left, right):
        axis.set_ylim(bottom=0)
    if len(found) > 1:
        left.legend(fontsize=8, frameon=False)
    marks = [
        (float(kl), 100 * float(share), f"{strength:g}")
        for one in found
        for strength, kl, share in zip(one.strengths, one.kl, one.share, strict=True)
    ]
    label_points(
        right,
        [mark[:2] for mark in marks],
        [mark[2] for mark in marks],
        ["0.35"] * len(marks),
        8,
        [list(zip(one.kl, 100 * one.share, strict=True)) for one in found],
    )
    result: Figure = figure
    return result


def stream_figure(found: BalancedStream) -> Figure:
    """Max violation along a stream without and with the bias controller, and the cost in KL."""
    import numpy as np

    figure = new_figure(9, 3.8)
    left, right = figure.subplots(1, 2)
    steps = np.arange(1, len(found.kl) + 1)
    for name, table, colour in (
        ("plain", found.plain, COLOURS[1]),
        ("controlled", found.balanced, COLOURS[0]),
    ):
        left.plot(steps, table, color=colour, linewidth=0.7, alpha=0.35)
        left.plot(steps, np.nanmean(table, axis=1), color=colour, linewidth=2, label=name)
    left.legend(fontsize=8, frameon=False)
    left.set_ylim(bottom=0)
    plain(left, "Load of each layer (thin) and their mean", "step", "max violation (0 = even)")
    right.plot(steps, found.kl, color=COLOURS[2], linewidth=1.5)
    right.set_ylim(bottom=0)
    plain(right, "What the balance costs", "step", "KL, nats a token")
    result: Figure = figure
    return result


def saturation_figure(earlier: Mapping[str, Record], final: Record) -> Figure:
    """How much of the final routing each earlier checkpoint chose already, a line for each layer.

    `earlier`: name -> record of the same tokens, in the order of training. Dotted: what unrelated
    routing would share, K / E.
    """
    from .specialisation import saturation

    if not earlier:
        raise ValueError("[saturation_figure] there are no earlier checkpoints")
    shares = [saturation(record, final) for record in earlier.values()]
    used = (final.experts >= 0).sum(axis=2).mean(axis=0)
    chance = float((used / final.num_experts).mean()) if len(final) else 0.0
    figure = new_figure(6.5, 4)
    axis = figure.subplots()
    layers, names = final.layers.tolist(), list(earlier)
    ramp = _ramp(len(layers))
    if len(names) == 1:
        axis.bar([str(n) for n in layers], shares[0], color=ramp)
    else:
        for place, layer in enumerate(layers):
            line = [share[place] for share in shares]
            axis.plot(names, line, marker="o", color=ramp[place], label=str(layer))
        if len(layers) <= 12:
            axis.legend(title="layer", fontsize=8)
        else:
            axis.text(
                0.99,
                0.02,
                "dark: low layers, light: high",
                ha="right",
                fontsize=8,
                transform=axis.transAxes,
            )
    axis.axhline(chance, color="black", linestyle=":", linewidth=1)
    axis.text(1.0, chance, " K / E", va="center", fontsize=8, transform=axis.get_yaxis_transform())
    axis.set_ylim(0, 1.02)
    plain(
        axis,
        "Experts of the final checkpoint chosen already",
        "layer" if len(names) == 1 else "checkpoint",
        "share",
    )
    result: Figure = figure
    return result


def _ramp(count: int) -> Any:
    """Colours of layers, from dark to light."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * i / max(1, count - 1)) for i in range(count)]
