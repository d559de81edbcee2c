"""`moekit bench`: how fast the block runs here, and what share of the machine's limits that is."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from moekit.bench import Figure
    from moekit.ops.limits import MachineLimits

_DEFAULT_SHAPE = "olmoe-1b-7b"
_DEFAULT_FORMATS = ("f32", "bf16", "int8", "int4")
_LARGEST_BATCH = 1 << 16

_EXAMPLES = """\
examples:
  moekit bench
  moekit bench --shape mixtral-8x7b --format bf16,q4_k --tokens 1,512
  moekit bench --shape 2880,2880,32,4 --format mxfp4 --seconds 3
  moekit bench --shape all --format all --json > table.json
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the `moekit` parser."""
    parser = subparsers.add_parser(
        "bench",
        help="time the block, and compare with what the machine can do",
        description="Times gate · up · activate · down · combine of one layer, in turn with "
        "measurements of the read bandwidth and of the multiply peak. Weights are random and come "
        "from memory, not from a cache.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--shape",
        action="append",
        metavar="NAME|H,F,E,K",
        help="hidden, expert inner size, experts, experts per token; or mixtral-8x7b, olmoe-1b-7b, "
        f"qwen3-30b-a3b, deepseek-v3, all ({_DEFAULT_SHAPE})",
    )
    add(
        "--format",
        action="append",
        metavar="F,F…",
        help=f"of the weights, or all ({' '.join(_DEFAULT_FORMATS)})",
    )
    add("--tokens", default="1,4,16,64,512", metavar="N,N…", help="batch sizes (1,4,16,64,512)")
    add("--threads", type=int, metavar="N", help="threads (those of MOEKIT_NUM_THREADS, else all)")
    add("--seconds", type=float, default=1.0, help="for each line, at least three runs (1)")
    add("--compute", default="auto", help="auto, exact or fast (auto)")
    add(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time per thread, where other programs run meanwhile (wall)",
    )
    add("--memory", type=float, default=1.0, metavar="GiB", help="for the experts' weights (1)")
    add("--json", action="store_true", help="print every figure as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print the table. Raises ValueError for bad input."""
    from tqdm import tqdm

    from moekit import bench, ops
    from moekit.ops.limits import dot_of, threads_set_to

    shapes = []
    for text in args.shape or [_DEFAULT_SHAPE]:
        shapes += list(bench.SHAPES.values()) if text == "all" else [bench.parse_shape(text)]
    known = ops.format_names()
    formats: list[str] = []
    given = [name.strip() for text in args.format or () for name in text.split(",")]
    for name in given or [name for name in _DEFAULT_FORMATS if name in known]:
        formats += known if name == "all" else [name]
    for name in formats:
        dot_of(name, 1, 1, args.compute)  # a wrong name is told before anything is measured
    tokens = _tokens(args.tokens)
    if not 0 < args.memory <= 1 << 20:
        raise ValueError(f"[bench] --memory is {args.memory} GiB; more than 0 is required")
    if not 0 < args.seconds <= 3600:
        raise ValueError(f"[bench] --seconds is {args.seconds}; more than 0 is required")

    figures: list[Figure] = []
    with (
        threads_set_to(args.threads),
        tqdm(total=len(shapes) * len(formats) * len(tokens), unit="line", file=sys.stderr) as bar,
    ):
        limits = ops.machine_limits(clock=args.clock)
        for figure in bench.measure(
            shapes,
            formats,
            tokens,
            seconds=args.seconds,
            compute=args.compute,
            memory=int(args.memory * 2**30),
            clock=args.clock,
            progress=bar.set_description,
        ):
            figures.append(figure)
            bar.update()
    if args.json:
        lines = [figure.to_dict() for figure in figures]
        print(
            json.dumps({"machine": limits.to_dict(), "clock": args.clock, "lines": lines}, indent=2)
        )
    else:
        _print(limits, figures)
    return 0


def _tokens(text: str) -> list[int]:
    try:
        tokens = [int(part) for part in text.split(",")]
    except ValueError:
        tokens = []
    if not tokens or not all(0 < count <= _LARGEST_BATCH for count in tokens):
        raise ValueError(
            f"[bench] --tokens is {text[:40]!r}; numbers from 1 to {_LARGEST_BATCH} are required, "
            "with commas between them"
        )
    return tokens


def _print(limits: MachineLimits, figures: list[Figure]) -> None:
    from rich.console import Console

    from moekit import _core

    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe has no width of its own; tables must not break
        console = Console(highlight=False, width=140)
    peaks = ", ".join(f"{dot} {peak / 1e9:.0f}" for dot, peak in limits.multiply_peak.items())
    console.print(
        f"{limits.cpu}, {limits.isa}, {limits.threads} thread(s): reads "
        f"{limits.read_bandwidth / 1e9:.1f} GB/s, multiplies {peaks} Gop/s"
    )
    console.print(_table(figures))
    for note in _notes(figures, _core.last_level_cache_bytes()):
        console.print(note)


def _notes(figures: list[Figure], cache: int) -> list[str]:
    """What a reader has to know about where the weights lay."""
    notes = {
        f"{f.shape} {f.format}: {f.experts} experts share the memory of {f.resident}, which is "
        f"{f.resident_bytes / 2**30:.1f} GiB"
        for f in figures
        if f.resident < f.experts
    }
    cached = {
        f"{f.shape} {f.format}: all experts are {f.resident_bytes / 2**20:.0f} MiB, so part of "
        f"them comes from the cache of {cache / 2**20:.0f} MiB"
        for f in figures
        if f.resident_bytes < 4 * cache
    }
    return sorted(notes | cached)


def _table(figures: list[Figure]) -> Table:
    from rich.table import Table

    table = Table(title="gate · up · activate · down · combine of one layer")
    for name in ("shape", "format", "dot"):
        table.add_column(name)
    for name in (
        "tokens",
        "min ms",
        "median",
        "p99",
        "GB/s",
        "limit",
        "Gop/s",
        "limit",
        "of limit",
    ):
        table.add_column(name, justify="right")
    for f in figures:
        reads = f.bound == "read"
        table.add_row(
            f.shape,
            f.format,
            f.dot,
            str(f.tokens),
            *(f"{t * 1e3:.3g}" if t < 1 else f"{t * 1e3:.0f}" for t in (f.min, f.median, f.p99)),
            f"{f.bytes_per_second / 1e9:.1f}",
            f"{f.read_bandwidth / 1e9:.1f}",
            f"{f.operations_per_second / 1e9:.0f}",
            f"{f.multiply_peak / 1e9:.0f}",
            f"{f.fraction:.0%} {'read' if reads else 'multiply'}",
        )
    return table
