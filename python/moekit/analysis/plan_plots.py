"""Figures of the planner: what a model needs and costs on machines.

Every function returns a `matplotlib.figure.Figure`; `plots.save` writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .plots import COLOURS, new_figure, plain

if TYPE_CHECKING:
    from ..planner import Machine, ModelPlan

PLAN_FORMATS = ("bf16", "fp8", "q6_k", "q4_k", "int4", "q3_k", "q2_k")
PLAN_BATCHES = tuple(2**i for i in range(13))


def plan_figure(
    plans: Sequence[ModelPlan],
    machines: Sequence[Machine],
    *,
    price: float | None = None,
) -> Any:
    """Memory by format, tokens/s by batch, distinct experts by batch, cost by utilisation.

    One plan is drawn on every machine; several plans are compared on the first machine. `price`
    replaces the machines' own dollars an hour.
    """
    figure = new_figure(12, 8.5)
    axes = figure.subplots(2, 2)
    names = [plan.name or plan.inventory.model_type for plan in plans]
    suffix = "" if len(plans) == 1 else f" on {machines[0].name}"
    figure.suptitle(f"{' / '.join(names)}{suffix}")
    draw_memory(axes[0][0], plans, machines)
    draw_speed(axes[0][1], plans, machines)
    draw_experts(axes[1][0], plans)
    draw_cost(axes[1][1], plans, machines, price)
    return figure


def _series(
    plans: Sequence[ModelPlan], machines: Sequence[Machine]
) -> list[tuple[str, ModelPlan, Machine]]:
    """What the lines of a panel are: machines of the only plan, or plans on the first machine."""
    if len(plans) == 1:
        return [(machine.name, plans[0], machine) for machine in machines]
    return [(plan.name or plan.inventory.model_type, plan, machines[0]) for plan in plans]


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
    limit = 1.1 * max(p.at(format=name).weight_bytes for p in plans for name in PLAN_FORMATS) / 1e9
    axis.set_xlim(0, limit)
    for machine in machines:
        if machine.usable_bytes / 1e9 < limit:
            axis.axvline(machine.usable_bytes / 1e9, color="0.4", linestyle=":", linewidth=1)
    title = "Weights by format: routed experts (blue), the rest (orange)"
    if len(plans) > 1:
        title += "\nbars in the order of the models; dotted: one device"
    else:
        title += "\ndotted: one device of each machine"
    plain(axis, title, "GB", "")


def draw_speed(axis: Any, plans: Sequence[ModelPlan], machines: Sequence[Machine]) -> None:
    """Roofline decode over the batch; a dot marks the batch from which compute binds."""
    seen: list[list[float]] = []
    for colour, (label, plan, machine) in zip(COLOURS * 4, _series(plans, machines), strict=False):
        placed = machine.times(plan.devices(machine.usable_bytes))
        batch = plan.roofline(placed).compute_bound_batch
        if batch is not None and batch > PLAN_BATCHES[-1]:
            batch = None
        batches = sorted({*PLAN_BATCHES, batch or 1})
        rates = [plan.at(batch=b).tokens_per_second(placed) for b in batches]
        count = f" x {placed.devices}" if placed.devices > 1 else ""
        style = "--" if rates in seen else "-"  # equal machines would hide each other
        seen.append(rates)
        axis.plot(batches, rates, style, color=colour, label=f"{label}{count}")
        if batch is not None:
            axis.plot(batch, rates[batches.index(batch)], "o", color=colour)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.legend(fontsize=8, frameon=False)
    context = f", {plans[0].context:,} tokens of context" if plans[0].context else ""
    plain(
        axis,
        f"Decode in {plans[0].format.name}{context} (upper bound)\nfrom the dot on compute binds",
        "sequences in the batch",
        "tokens/s, all sequences",
    )


def draw_experts(axis: Any, plans: Sequence[ModelPlan]) -> None:
    """Share of a layer's experts that a batch wakes, and the tokens each of them works for."""
    twin = axis.twinx()
    sparse = False
    for colour, plan in zip(COLOURS * 4, plans, strict=False):
        if not plan.num_experts:
            continue
        sparse = True
        woken = [plan.at(batch=b).expected_distinct_experts for b in PLAN_BATCHES]
        owner = f"{plan.name or plan.inventory.model_type}, " if len(plans) > 1 else ""
        label = f"{owner}{plan.top_k} of {plan.num_experts}: experts read"
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
        axis.legend(fontsize=8, frameon=False, loc="lower right")
    else:
        axis.set_yticks([])
        twin.set_yticks([], minor=False)
        twin.set_yticks([], minor=True)
        axis.text(0.5, 0.5, "dense: no experts", ha="center", transform=axis.transAxes)
    plain(
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
    plain(
        axis,
        f"Cost at batch {plans[0].batch}",
        "% of the time in use",
        "dollars for a million tokens",
    )
