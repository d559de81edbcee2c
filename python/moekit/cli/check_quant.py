"""`moekit check-quant`: what quantisation did to the experts and to the routing."""

import argparse
import json
import os
import sys
from typing import Any

from . import options
from .quantize import texts_of

_EXAMPLES = """\
  moekit check-quant ./my-model ./my-model-int4 texts/
  moekit check-quant demo int4 prose.txt --min-agreement 0.95 --max-kl 0.05 --json
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the `moekit` parser."""
    parser = options.add_parser(
        subparsers,
        "check-quant",
        "how a quantised model differs: routing, experts, predictions",
        "Compares B with A on TEXTS. The divergence of the predictions is split into what the "
        "experts' errors do and what being routed otherwise does. Exit status 1 beyond a "
        "threshold.",
        _EXAMPLES,
    )
    add = parser.add_argument
    add("full", metavar="A", help='the full model; "demo" is the one in the package')
    add("quantised", metavar="B", help="the quantised model, or a format to load A in")
    add("texts", metavar="TEXTS", help="a text file, or a directory of *.txt")
    add("--min-agreement", type=float, default=0.9, metavar="X", help="of experts (%(default)s)")
    add("--max-kl", type=float, default=float("inf"), metavar="X", help="nats a token")
    add("--max-perplexity", type=float, default=float("inf"), metavar="X", help="ratio of B to A")
    add("--window", type=int, default=512, metavar="N", help="tokens read at once (%(default)s)")
    add("--worst", type=int, default=10, metavar="N", help="tokens to show (%(default)s)")
    add("--plot", metavar="P.png", help="draw agreement and errors as well")
    add("--threads", type=int, metavar="N", help="(default: all that are there)")
    add("--json", action="store_true", help="print figures as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import moekit

    texts = texts_of(args.texts)
    path = moekit.demo_path() if args.full == "demo" else args.full
    full = moekit.load(path, threads=args.threads)
    if not os.path.exists(args.quantised) and args.quantised in moekit.ops.format_names():
        quantised = moekit.load(path, args.quantised)
    else:
        quantised = moekit.load(args.quantised)
    report = moekit.quant_report(full, quantised, texts, window=args.window, worst=args.worst)
    good = report.passes(args.min_agreement, args.max_kl, args.max_perplexity)
    if args.plot:
        from ..analysis import quant_plots
        from ..analysis.plots import save

        save(quant_plots.report_figure(report), args.plot)
    if args.json:
        print(json.dumps({**report.to_dict(), "passes": good}))
    else:
        _print(report, good)
    return 0 if good else 1


def _print(report: Any, good: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(file=sys.stdout, highlight=False)
    ratio = report.bytes_quantised / report.bytes_full
    console.print(
        f"{report.tokens} tokens; {report.bytes_quantised:,} of {report.bytes_full:,} bytes "
        f"({ratio:.1%})\n"
        f"KL {report.kl:.5f} nats a token = experts {report.kl_experts:.5f} + routing "
        f"{report.kl_routing:+.5f}\n"
        f"perplexity {report.perplexity_full:.4f} -> {report.perplexity_quantised:.4f}; same "
        f"likeliest token {report.top1:.2%}\n"
        f"experts chosen by both {report.agreement:.2%}",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    errors: dict[int, list[float]] = {}
    for row in report.experts:
        if row.error is not None:
            errors.setdefault(row.layer, []).append(row.error)
    for column in ("layer", "same experts", "same set", "mean error of experts", "worst"):
        table.add_column(column, justify="right")
    for row in report.layers:
        found = errors.get(row.layer, [float("nan")])
        table.add_row(
            str(row.layer),
            f"{row.agreement:.2%}",
            f"{row.same_set:.2%}",
            f"{sum(found) / len(found):.2e}",
            f"{max(found):.2e}",
        )
    console.print(table)
    if report.margins:
        groups = " ".join(f"{group.flips:.1%}" for group in report.margins)
        console.print(f"other sets, from the narrowest margin to the widest: {groups}")
    for token in report.worst:
        context = escape(repr(token.context[-60:])[1:-1])
        console.print(
            f"{token.kl:8.3f} = {token.kl_experts:.3f} {token.kl_routing:+.3f}  {context}"
            f"[reverse]{escape(repr(token.token)[1:-1])}[/reverse]",
            soft_wrap=True,
        )
    console.print("within the thresholds" if good else "beyond a threshold")
