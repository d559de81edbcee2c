"""`moekit inspect`: what a checkpoint holds, without reading a weight."""

import argparse
import json
from typing import Any

from . import options

_EXAMPLES = """\
  moekit inspect ./my-model
  moekit inspect ./my-model.gguf --json
  moekit inspect ./my-model --tensors
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the `moekit` parser."""
    parser = options.add_parser(
        subparsers,
        "inspect",
        "what a checkpoint holds, from its headers",
        "Architecture, experts, parameters (all, and those that work for one token) and bytes of "
        "each class of tensors. Reads headers only.",
        _EXAMPLES,
    )
    parser.add_argument(
        "path", nargs="?", metavar="PATH", help="(default: the model in the package)"
    )
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..contents import read_contents

    path = args.path
    if path is None:
        import moekit

        path = moekit.demo_path()
    contents = read_contents(path)
    if args.json:
        print(json.dumps(contents.to_dict(tensors=args.tensors), indent=2))
        return 0
    _show(contents, args.tensors)
    return 0


def _show(contents: Any, tensors: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe has no width of its own; tables must not break
        console = Console(highlight=False, width=120)
    runs = "" if contents.runs else "  [yellow](no family of moekit runs it)[/yellow]"
    console.print(f"[bold]{contents.architecture}[/bold]{runs}  {contents.path}")
    for name, value in contents.facts.items():
        console.print(f"  {name:<22}{value}")
    console.print(f"  {'parameters':<22}{contents.total:,}")
    console.print(f"  {'active for a token':<22}{contents.active:,}")
    table = Table(box=None, header_style="dim")
    for column, side in (("class", "left"), ("tensors", "right"), ("parameters", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    table.add_column("bytes", justify="right")
    table.add_column("stored as")
    for row in contents.classes:
        table.add_row(
            row.name, str(row.tensors), f"{row.parameters:,}", f"{row.nbytes:,}", row.stored
        )
    console.print(table)
    if tensors:
        for name, dtype, shape, kind in contents.tensors:
            console.print(f"{name}  {dtype} {list(shape)}  [dim]{kind}[/dim]", soft_wrap=True)
