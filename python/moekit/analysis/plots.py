"""Every figure of the package; the only module that imports matplotlib.

A function takes figures that are already computed and returns a `matplotlib.figure.Figure`; `save`
writes it. Nothing goes through pyplot, so no window opens and no global state changes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..planner import Machine, ModelPlan
    from ..record import Record

# Okabe and Ito's colours: told apart by every kind of colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def _figure(width: float, height: float) -> Any:
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


# -- the planner ------------------------------------------------------------------------------

PLAN_FORMATS = ("bf16", "fp8", "q6_k", "q4_k", "int4", "q3_k", "q2_k")
PLAN_BATCHES = tuple(2**i for i in range(13))


def plan_figure(
    plans: Sequence[ModelPlan],
    machines: Sequence[Machine],
    *,
    price: float | None = None,
) -> Figure:
    """Memory by format, tokens/s by batch, distinct experts by batch, cost by utilisation.

    One plan is drawn on every machine; several plans are compared on the first machine. `price`
    replaces the machines' own dollars an hour.
    """
    figure = _figure(12, 8.5)
    axes = figure.subplots(2, 2)
    names = [plan.name or plan.inventory.model_type for plan in plans]
    suffix = "" if len(plans) == 1 else f" on {machines[0].name}"
    figure.suptitle(f"{' / '.join(names)}{suffix}")
    draw_memory(axes[0][0], plans, machines)
    draw_speed(axes[0][1], plans, machines)
    draw_experts(axes[1][0], plans)
    draw_cost(axes[1][1], plans, machines, price)
    result: Figure = figure
    return result


def _series(
    plans: Sequence[ModelPlan], machines: Sequence[Machine]
) -> list[tuple[str, ModelPlan, Machine]]:
    """What the lines of a panel are: machines of the only plan, or plans on the first machine."""
    if len(plans) == 1:
        return [(machine.name, plans[0], machine) for machine in machines]
    return [(plan.name or plan.inventory.model_type, plan, machines[0]) for plan in plans]


def _plain(axis: Any, title: str, x: str, y: str) -> None:
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def draw_memory(axis: Any, plans: Sequence[ModelPlan], machines: Sequence[Machine]) -> None:
    """Weight bytes in each format, experts apart from the rest; machines as dotted lines."""
    height = 0.8 / len(plans)
    for j, plan in enumerate(plans):
        for i, name in enumerate(PLAN_FORMATS):
            sized = plan.at(format=name)
            routed = sized.component_bytes["routed"] / 1e9
            rest = sized.weight_bytes / 1e9 - routed
            place = i + j * height
            axis.barh(place, rest, height * 0.9, color=COLOURS[1])
            axis.barh(
                place, routed, height * 0.9, left=rest, color=COLOURS[0], alpha=1.0 - 0.35 * j
            )
            axis.text(routed + rest, place, f" {routed + rest:,.0f}", va="center", fontsize=8)
    axis.set_yticks([i + 0.4 - height / 2 for i in range(len(PLAN_FORMATS))])
    labels = [
        f"{name} ({plans[0].at(format=name).bits_per_weight:.2f} bits)" for name in PLAN_FORMATS
    ]
    axis.set_yticklabels(labels)
    axis.invert_yaxis()
    axis.margins(x=0.09)
    limit = axis.get_xlim()[1]
    for machine in machines:
        if machine.usable_bytes / 1e9 < limit:
            axis.axvline(machine.usable_bytes / 1e9, color="0.4", linestyle=":", linewidth=1)
    title = "Weights by format: routed experts (blue), the rest (orange)"
    if len(plans) > 1:
        title += "\nbars in the order of the models"
    _plain(axis, title, "GB", "")


def draw_speed(axis: Any, plans: Sequence[ModelPlan], machines: Sequence[Machine]) -> None:
    """Roofline decode over the batch; a dot marks the batch from which compute binds."""
    seen: list[list[float]] = []
    for colour, (label, plan, machine) in zip(COLOURS * 4, _series(plans, machines), strict=False):
        placed = machine.times(plan.devices(machine.usable_bytes))
        rates = [plan.at(batch=b).tokens_per_second(placed) for b in PLAN_BATCHES]
        count = f" x {placed.devices}" if placed.devices > 1 else ""
        style = "--" if rates in seen else "-"  # equal machines would hide each other
        seen.append(rates)
        axis.plot(PLAN_BATCHES, rates, style, color=colour, label=f"{label}{count}")
        batch = plan.roofline(placed).compute_bound_batch
        if batch is not None and batch <= PLAN_BATCHES[-1]:
            axis.plot(batch, plan.at(batch=batch).tokens_per_second(placed), "o", color=colour)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.legend(fontsize=8, frameon=False)
    context = f", {plans[0].context:,} tokens of context" if plans[0].context else ""
    _plain(
        axis,
        f"Decode in {plans[0].format.name}{context} (upper bound)",
        "sequences in the batch",
        "tokens/s, all sequences",
    )


def draw_experts(axis: Any, plans: Sequence[ModelPlan]) -> None:
    """Share of a layer's experts that a batch wakes, and the tokens each of them works for."""
    twin = axis.twinx()
    sparse = [plan for plan in plans if plan.num_experts]
    for colour, plan in zip(COLOURS, sparse, strict=False):
        woken = [plan.at(batch=b).expected_distinct_experts for b in PLAN_BATCHES]
        label = f"{plan.top_k} of {plan.num_experts}: experts read"
        axis.plot(
            PLAN_BATCHES, [100 * w / plan.num_experts for w in woken], color=colour, label=label
        )
        reuse = [b * plan.top_k / w for b, w in zip(PLAN_BATCHES, woken, strict=True)]
        twin.plot(
            PLAN_BATCHES,
            reuse,
            color=colour,
            linestyle="--",
            label="tokens an expert works for (right)",
        )
    axis.set_xscale("log", base=2)
    twin.set_yscale("log")
    twin.set_ylabel("tokens for each expert read (dashed)")
    twin.spines["top"].set_visible(False)
    if sparse:
        axis.legend(fontsize=8, frameon=False, loc="center left")
    else:
        axis.text(0.5, 0.5, "dense: no experts", ha="center", transform=axis.transAxes)
    _plain(
        axis,
        "Experts read by a decode step, E(1 - (1 - K/E)^B)",
        "sequences in the batch",
        "% of a layer's experts",
    )


def draw_cost(
    axis: Any, plans: Sequence[ModelPlan], machines: Sequence[Machine], price: float | None
) -> None:
    """Dollars for a million tokens over the share of time that a machine is used."""
    shares = [i / 100 for i in range(2, 101, 2)]
    drawn = False
    for colour, (label, plan, machine) in zip(COLOURS * 4, _series(plans, machines), strict=False):
        placed = machine.times(plan.devices(machine.usable_bytes))
        full = plan.cost(placed, price_per_hour=price).dollars
        if full:
            axis.plot(
                [100 * s for s in shares], [full / s for s in shares], color=colour, label=label
            )
            drawn = True
    if drawn:
        axis.set_yscale("log")
        axis.legend(fontsize=8, frameon=False)
    else:
        axis.text(0.5, 0.5, "no machine states a price", ha="center", transform=axis.transAxes)
    _plain(
        axis,
        f"Cost at batch {plans[0].batch}",
        "% of the time in use",
        "dollars for a million tokens",
    )


# -- end of the planner -----------------------------------------------------------------------


# -- routing ----------------------------------------------------------------------------------


def load_heatmap(record: Record) -> Figure:
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
    layers, width = counts.shape
    figure = _figure(min(16, 4 + width * 0.12), min(12, 2 + layers * 0.28))
    axis = figure.subplots()
    axis.set_facecolor("white")
    axis.imshow(
        np.ma.masked_array(np.ones_like(load), beyond | (counts > 0)),
        aspect="auto",
        cmap="Greys",
        norm=Normalize(0, 4),
        interpolation="none",
    )
    top = max(2.0, float(load.max(initial=0)))
    image = axis.imshow(
        shown, aspect="auto", cmap="viridis", norm=Normalize(0, top), interpolation="none"
    )
    axis.set_yticks(range(layers), [str(n) for n in record.layers])
    _plain(axis, f"Experts used by {len(record)} tokens", "expert", "layer")
    axis.grid(False)
    figure.colorbar(image, ax=axis, label="load (even = 1); grey: unused")
    result: Figure = figure
    return result
