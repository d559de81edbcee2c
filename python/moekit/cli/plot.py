"""`moekit plot`: a recorded routing as a picture."""

import argparse
from typing import TYPE_CHECKING, Any

from . import options

if TYPE_CHECKING:
    from ..record import Record

_EXAMPLES = """\
  moekit record "The cat sat on the mat." --margins --out cat.npz
  moekit plot cat.npz --out cat.png
  moekit plot cat.npz --kind coactivation --layer 3 --out together.svg
  moekit plot cat.npz --kind time --out time.png
  moekit plot cat.npz --kind text                      (colours in the terminal)
  moekit plot cat.npz --kind text --by margin --out cat.html
"""
_KINDS = ("load", "coactivation", "time", "text")


def add_parser(subparsers: Any) -> None:
    """Add the command to the `moekit` parser."""
    parser = options.add_parser(
        subparsers,
        "plot",
        "draw a recorded routing",
        "load: every expert in every layer. coactivation: which experts of a layer work together. "
        "time: the load of a layer along the text. text: the text, each token in the colour of its "
        "expert or its margin. Pictures need matplotlib: moekit[plots].",
        _EXAMPLES,
    )
    add = parser.add_argument
    add("record", metavar="T.npz", help="what `moekit record` has written")
    add("--kind", choices=_KINDS, default="load", help="(%(default)s)")
    add("--layer", type=int, metavar="N", help="the model's number of a layer (the middle one)")
    add("--by", choices=("expert", "margin"), default="expert", help="colours of text (expert)")
    add("--out", metavar="P", help="png, svg or pdf; html for text, which else goes to the screen")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..record import Record

    record = Record.load(args.record)
    if args.kind == "text":
        return _text(args, record)
    if args.out is None:
        raise ValueError(f"[plot] --kind {args.kind} has no --out; a png, svg or pdf is required")
    from ..analysis import plots

    layer = {} if args.kind == "load" else {"layer": args.layer}
    figure = record.plot(args.kind, **layer)
    plots.save(figure, args.out)
    print(args.out)
    return 0


def _text(args: argparse.Namespace, record: "Record") -> int:
    shown = record.show(args.layer, args.by)
    if args.out is None:
        from rich.console import Console

        Console(highlight=False).print(shown)
        return 0
    if not args.out.lower().endswith((".html", ".htm")):
        raise ValueError(f"[plot] --out is {args.out}; an .html file is required for text")
    shown.save(args.out)
    print(args.out)
    return 0
