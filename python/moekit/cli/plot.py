"""`moekit plot`: a recorded routing as a picture."""

import argparse
from typing import Any

from . import options

_EXAMPLES = """\
  moekit record "The cat sat on the mat." --out cat.npz
  moekit plot cat.npz --out cat.png
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the `moekit` parser."""
    parser = options.add_parser(
        subparsers,
        "plot",
        "draw a recorded routing",
        "Draws the load of every expert in every layer (needs matplotlib: moekit[plots]).",
        _EXAMPLES,
    )
    parser.add_argument("record", metavar="T.npz", help="what `moekit record` has written")
    parser.add_argument("--out", required=True, metavar="P.png", help="png, svg or pdf")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..analysis import plots
    from ..record import Record

    plots.save(plots.load_heatmap(Record.load(args.record)), args.out)
    print(args.out)
    return 0
