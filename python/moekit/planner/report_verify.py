"""What `--verify` found, with the terms that the predictions are made of."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .report import empty_table, flops, rate, size
from .verify import Check, Verification


def show(console: Console, found: Verification) -> None:
    """One format: the machine, both sums term by term, and the comparison."""
    head = Text(f"{found.name}", style="bold")
    head.append(
        f": {found.weights:,} weights, {size(found.nbytes)} in {found.format}, {found.calls} calls "
        f"a step\n",
        style="default",
    )
    if found.resident_share < 1:
        head.append(
            f"experts share the memory of {found.resident_share:.1%} of them\n", style="default"
        )
    peaks = ", ".join(f"{dot} {flops(peak)}/s" for dot, peak in found.multiply_peak.items())
    head.append(
        f"this machine, {found.isa}, {found.threads} thread{'s' if found.threads > 1 else ''}: "
        f"reads {size(found.read_bandwidth)}/s at this size, multiplies {peaks}",
        style="default",
    )
    console.print(head)
    for check in found.checks:
        console.print(_terms(check, 1 if check.phase == "decode" else found.prompt))
    show_all(console, [found])


def show_all(console: Console, found: Sequence[Verification]) -> None:
    """Several formats: the comparison, and whether the machine was free for it."""
    console.print(_comparison(found))
    if any(check.disturbed for one in found for check in one.checks):
        console.print(
            "Whole steps ran at less than half of their best: other programs share the processors, "
            "and a ratio may be theirs.\nOMP_WAIT_POLICY=passive lets threads sleep instead of "
            "turning, or --threads 1 --clock cpu leaves the others' time out."
        )


def _terms(check: Check, tokens: int) -> Table:
    title = f"\n{check.phase}, {tokens} token{'s' if tokens > 1 else ''}"
    lines = empty_table(
        "product", "calls", "shape", "reads", "GB/s", "work", "GFLOP/s", "us", title=title
    )
    total = sum(term.total for term in check.terms)
    for term in check.terms:
        shape, kind = "", term.product
        if kind is not None:
            experts = f"{kind.top_k} of {kind.experts} x " if kind.experts else ""
            shape = f"{experts}{kind.rows} x {kind.cols} {kind.format}"
        lines.add_row(
            ", ".join(term.names[:3]) + (", ..." if len(term.names) > 3 else ""),
            f"{term.calls}",
            shape,
            size(term.nbytes),
            f"{term.nbytes / term.seconds / 1e9:.3g}",
            flops(term.flops) if term.flops else "-",
            f"{term.flops / term.seconds / 1e9:.3g}" if term.flops else "-",
            f"{term.calls} x {1e6 * term.seconds:.4g} = {1e6 * term.total:,.4g}",
        )
    lines.add_row(f"{tokens} / {1e6 * total:,.4g} us", "", "", "", "", "", "", "", style="bold")
    return lines


def _comparison(found: Sequence[Verification]) -> Table:
    lines = empty_table(
        "tokens/s", "format", "predicted", "measured", "ratio", "as run", "roofline", "", title="\n"
    )
    for one in found:
        for check in one.checks:
            lines.add_row(
                f"{one.name} {check.phase}" if len(found) > 1 else check.phase,
                check.format,
                rate(check.predicted),
                rate(check.measured),
                f"{check.ratio:.2f}",
                rate(check.as_run),
                rate(check.limit),
                f"{check.bound} binds",
            )
    return lines
