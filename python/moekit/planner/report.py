"""A plan as terminal tables: active first, then where every number comes from.

Nothing here computes; each line prints figures of ModelPlan beside the terms they were made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .cost import ApiPrice, break_even_tokens, break_even_utilisation
from .formats import FORMATS, cache_bits
from .machines import Machine
from .plan import ModelPlan, Placement
from .roofline import Roofline, step_terms

_TITLES = {
    "embedding": "embedding",
    "attention": "attention",
    "recurrent": "recurrent mixers",
    "router": "router",
    "routed": "routed experts",
    "shared": "shared experts",
    "dense_ffn": "dense FFN",
    "norms": "norms",
    "residual": "residual streams",
    "head": "head",
}


def billions(count: float) -> str:
    """37.55 B, 3.21 M: parameters and FLOPs as people say them."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f}"


def flops(count: float) -> str:
    """GFLOP, TFLOP, PFLOP."""
    for unit_size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit_size:
            return f"{count / unit_size:.2f} {unit}FLOP"
    return f"{count:.0f} FLOP"


def size(nbytes: float) -> str:
    """Bytes in decimal units, as memory and bandwidth are sold."""
    for unit_size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(nbytes) >= unit_size:
            return f"{nbytes / unit_size:.2f} {unit}"
    return f"{nbytes:.0f} B"


def rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def money(dollars: float) -> str:
    return f"${dollars:,.0f}" if dollars >= 1000 else f"${dollars:.3g}"


def empty_table(*columns: str, title: str = "") -> Table:
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def headline(plan: ModelPlan) -> RenderableType:
    """Active first, then total, leverage and shape."""
    lines = Text()
    lines.append(f"{plan.name or plan.inventory.model_type}\n", style="bold")
    lines.append(f"active {billions(plan.active_params)} ", style="bold green")
    lines.append(f"= {plan.active_params:,} parameters a token")
    if plan.active_params != plan.active_params_no_embedding:
        lines.append(f" ({plan.active_params_no_embedding:,} without the embedding lookup)")
    lines.append(f"\ntotal  {billions(plan.total_params)} = {plan.total_params:,}")
    if plan.num_experts:
        lines.append(
            f"\nleverage {plan.leverage:.2f} (total / active), sparsity {plan.sparsity:.1%}; "
            f"{plan.moe_layers} of {plan.num_layers} layers sparse, "
            f"{plan.top_k} of {plan.num_experts} experts a token"
        )
    else:
        lines.append(f"\ndense: all of its {plan.num_layers} layers work for every token")
    if plan.mtp_params:
        lines.append(f"\napart: {billions(plan.mtp_params)} of multi-token prediction, not counted")
    if plan.source:
        lines.append(f"\nfrom {plan.source}", style="dim")
    return lines


def component_table(plan: ModelPlan) -> Table:
    table = empty_table(
        "component",
        "active",
        "total",
        "share",
        f"bytes as {plan.format.name}",
        title="\nParameters",
    )
    for name, total in plan.components.items():
        if total:
            table.add_row(
                _TITLES[name],
                f"{plan.active_components[name]:,}",
                f"{total:,}",
                f"{total / plan.total_params:.2%}",
                size(plan.component_bytes[name]),
            )
    table.add_row(
        "all",
        f"{plan.active_params:,}",
        f"{plan.total_params:,}",
        "100%",
        size(plan.weight_bytes),
        style="bold",
    )
    return table


def arithmetic_table(plan: ModelPlan) -> Table:
    """Every distinct weight: layers x copies x shape."""
    table = empty_table("weight", "layers x copies x shape", "parameters", title="\nArithmetic")
    terms: dict[tuple[str, str, tuple[int, ...], int, int], int] = {}
    for block, count in plan.blocks():
        for weight in block.weights:
            key = (weight.component, weight.name, weight.shape, weight.copies, weight.active_copies)
            terms[key] = terms.get(key, 0) + count
    for component in _TITLES:
        for (owner, name, shape, copies, active), count in terms.items():
            if owner != component:
                continue
            dims = " x ".join(str(d) for d in shape)
            product = f"{count} x {copies} x {dims}" if copies > 1 else f"{count} x {dims}"
            if active != copies:
                product += f"  ({active} of {copies} active)"
            total = count * copies
            for d in shape:
                total *= d
            label = name if name == component else f"{_TITLES[component]}: {name}"
            table.add_row(label, product, f"{total:,}")
    return table


def memory_table(plan: ModelPlan, placement: Placement | None = None) -> Table:
    table = empty_table("memory", "", "", title="\nMemory")
    label = f"{plan.format.bits:g} bits, {plan.format.bits_with_scales:.4g} with scales"
    table.add_row(
        "weights",
        size(plan.weight_bytes),
        f"{label}; {plan.bits_per_weight:.3f} over all parameters",
    )
    table.add_row(
        "as loaded here",
        size(plan.loaded_bytes),
        "embedding 16 bits, head at least 8, routers and norms 32",
    )
    elements, bits = plan.kv_elements_per_token, cache_bits(plan.kv_format)
    table.add_row(
        "cache of a token", size(plan.kv_bytes_per_token), f"{elements:,} elements x {bits:g} bits"
    )
    if plan.index_elements_per_token:
        table.add_row(
            "+ indexer keys",
            size(plan.index_elements_per_token * bits / 8),
            f"{plan.index_elements_per_token:,} elements",
        )
    if plan.context:
        cache = plan.cache_bytes(plan.context, plan.batch)
        table.add_row(
            "cache in use",
            size(cache),
            f"{plan.batch} x {plan.context:,} tokens; windows and states counted",
        )
    table.add_row("all", size(plan.memory_bytes), "", style="bold")
    if placement is not None:
        label = f"in {placement.devices} x {size(placement.memory_bytes)}"
        if placement.free_bytes < 0:
            table.add_row(label, f"{size(-placement.free_bytes)} short", "")
        else:
            fits = f"one sequence of {_many(placement.max_context)} tokens"
            if plan.context:
                fits += f", or {_many(placement.max_batch)} of {plan.context:,}"
            table.add_row(label, f"{size(placement.free_bytes)} left", fits)
    return table


def format_table(plan: ModelPlan) -> Table:
    """The weights in every format, as files hold them and as they are loaded here."""
    table = empty_table("format", "bits", "with scales", "weights", "as loaded", "+ cache in use")
    for name, format in FORMATS.items():
        other = plan.at(format=name)
        table.add_row(
            name,
            f"{format.bits:g}",
            f"{format.bits_with_scales:.4g}",
            size(other.weight_bytes),
            size(other.loaded_bytes),
            size(other.memory_bytes),
        )
    return table


def machine_table(plan: ModelPlan, machines: Sequence[Machine], devices: int | None) -> Table:
    """Devices needed, what they leave for the cache, and the bounds on speed."""
    table = empty_table(
        "machine",
        "devices",
        "left",
        "context",
        "batch",
        "decode tok/s",
        "bound",
        "prefill tok/s",
        "compute binds from",
        title="\nMachines (upper bounds)",
    )
    for machine in machines:
        placed = plan.placement(machine.usable_bytes, devices)
        bound = plan.roofline(machine.times(placed.devices))
        if placed.free_bytes < 0:
            table.add_row(
                machine.name,
                f"{placed.devices}",
                f"{size(-placed.free_bytes)} short",
                *["-"] * 6,
                style="dim",
            )
            continue
        batch = bound.compute_bound_batch
        table.add_row(
            machine.name,
            f"{placed.devices}",
            size(placed.free_bytes),
            _many(placed.max_context),
            _many(placed.max_batch) if plan.context else "-",
            rate(bound.decode),
            bound.decode_bound,
            rate(bound.prefill),
            "never" if batch is None else f"batch {batch}",
        )
    return table


def _many(count: int) -> str:
    return "unbounded" if count >= 1 << 40 else f"{count:,}"


def work_lines(plan: ModelPlan, machine: Machine, bound: Roofline) -> Text:
    """The decode step of one machine, term by term."""
    dense, experts, cache = step_terms(plan, plan.context, plan.batch)
    text = Text("\nA decode step", style="bold")
    text.append(
        f" of {plan.batch} token{'s' if plan.batch > 1 else ''} on {machine.name}"
        f" x {machine.devices}\n",
        style="default",
    )
    if plan.num_experts:
        e, k, b = plan.num_experts, plan.top_k, plan.batch
        text.append(
            f"distinct experts   {e} x (1 - (1 - {k}/{e})^{b}) = "
            f"{plan.expected_distinct_experts:.2f} of a layer\n",
            style="default",
        )
    text.append(
        f"read               {size(dense)} dense + {size(experts)} experts + {size(cache)} cache"
        f" = {size(bound.decode_bytes)}\n"
        f"work               {plan.batch} x {flops(plan.flops_per_token)}"
        f" = {flops(bound.decode_flops)}"
        f" ({bound.decode_flops / bound.decode_bytes:.2f} a byte)\n"
        f"time               max({size(bound.decode_bytes)} / {size(bound.bandwidth)}/s, "
        f"{flops(bound.decode_flops)} / {flops(bound.peak)}/s)"
        f" = {1e3 * plan.batch / bound.decode:.3g} ms: {bound.decode_bound} binds\n"
        f"decode             {rate(bound.decode)} tokens/s, "
        f"{rate(bound.decode / plan.batch)} of each sequence\n"
        f"prefill            {rate(bound.prefill)} tokens/s: {bound.prefill_bound} binds",
        style="default",
    )
    return text


def cost_lines(
    plan: ModelPlan, machine: Machine, options: dict[str, Any], api: ApiPrice | None
) -> Text:
    """Dollars for a million tokens and the break-even against an API."""
    full = plan.cost(machine, **{**options, "utilisation": 1.0})
    real, busy = plan.cost(machine, **options), options.get("utilisation", 1.0)
    text = Text("\nCost", style="bold")
    if not full.dollars:
        text.append(f"\n{machine.name} states no price; give --price", style="default")
        return text
    text.append(
        f"\na million tokens   {full.hours:.3g} h x {money(full.dollars_per_hour)}/h"
        f" = {money(full.dollars)} when always busy, {money(real.dollars)} at {busy:.0%}",
        style="default",
    )
    if api is not None:
        share = break_even_utilisation(full.dollars, api.output)
        if share <= 1:
            tokens = break_even_tokens(full.dollars_per_hour, api.output)
            verdict = f"{share:.1%} busy, {billions(tokens)} tokens a month"
        else:
            verdict = "never: the API is cheaper"
        text.append(f"\nagainst ${api.output:g}      break-even {verdict}", style="default")
        if api.source:
            since = f", since {api.since}" if api.since else ""
            text.append(f"\n{api.name}: {api.source}{since}", style="dim")
    if machine.source:
        text.append(f"\n{machine.name}: {machine.source}", style="dim")
    return text


def training_line(
    plan: ModelPlan, tokens: float, machine: Machine, mfu: float, price: float | None
) -> Text:
    """6 x active x tokens as device hours and dollars."""
    cost = plan.training(tokens, machine, utilisation=mfu, price_per_hour=price)
    text = Text(f"\nTraining on {machine.name}", style="bold")
    text.append(
        f"\n6 x {plan.active_params:,} x {tokens:g} = {cost.detail['flops']:.3g} FLOP;"
        f" / ({machine.peak['bf16']:.4g} FLOP/s x {mfu:g}) = {cost.hours:,.0f} device hours"
        f" x {money(cost.dollars_per_hour)} = {money(cost.dollars)}",
        style="default",
    )
    return text


def compare_table(
    plans: Sequence[ModelPlan],
    machines: Sequence[Machine],
    options: dict[str, Any],
    devices: int | None = None,
) -> Table:
    """Plans side by side, one figure a row."""
    table = empty_table("", *[p.name or p.inventory.model_type for p in plans], title="\nCompared")
    rows: list[tuple[str, Any]] = [
        ("active", lambda p: f"{p.active_params:,}"),
        ("active, no embedding", lambda p: f"{p.active_params_no_embedding:,}"),
        ("total", lambda p: f"{p.total_params:,}"),
        ("leverage", lambda p: f"{p.leverage:.2f}"),
        ("experts a token", lambda p: f"{p.top_k} of {p.num_experts}" if p.num_experts else "-"),
        (f"weights, {plans[0].format.name}", lambda p: size(p.weight_bytes)),
        ("cache a token", lambda p: size(p.kv_bytes_per_token)),
        (f"memory, {plans[0].batch} x {plans[0].context:,}", lambda p: size(p.memory_bytes)),
        ("work a token", lambda p: flops(p.flops_per_token)),
        (f"bytes a token, batch {plans[0].batch}", lambda p: size(p.bytes_per_token)),
    ]
    for name, figure in rows:
        table.add_row(name, *[figure(p) for p in plans])
    for machine in machines:
        decode, prefill, cost = [], [], []
        for plan in plans:
            count = devices or plan.devices(machine.usable_bytes)
            placed = machine.times(count)
            bound = plan.roofline(placed)
            decode.append(f"{rate(bound.decode)} tok/s on {count}")
            prefill.append(f"{rate(bound.prefill)} tok/s")
            cost.append(money(plan.cost(placed, **options).dollars))
        table.add_row(f"decode, {machine.name}", *decode)
        table.add_row(f"prefill, {machine.name}", *prefill)
        if any(text != money(0.0) for text in cost):
            table.add_row(f"a million tokens, {machine.name}", *cost)
    return table


def show(console: Console, parts: Sequence[RenderableType]) -> None:
    console.print(Group(*parts))
