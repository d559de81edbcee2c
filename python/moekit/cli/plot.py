"""`moekit plot`: a recorded routing as a picture."""

import argparse
from pathlib import Path
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
  moekit plot step1000.npz step5000.npz final.npz --kind saturation --out settled.png
  moekit plot code.npz prose.npz --kind specialisation --out who.png
"""
_KINDS_HELP = """\
load            the load of every expert in every layer
coactivation    which experts of a layer work together
time            the load of a layer along the text
text            the text, each token in the colour of its first expert or its margin
saturation      how much of the last file's routing the earlier checkpoints (the files before) had
specialisation  what domain (a file each) and word explain of the routing, against shuffled labels

Pictures need matplotlib: moekit[plots]."""
_KINDS = ("load", "coactivation", "time", "text", "saturation", "specialisation")


def add_parser(subparsers: Any) -> None:
    """Add the command to the `moekit` parser."""
    parser = options.add_parser(
        subparsers,
        "plot",
        "draw a recorded routing",
        _KINDS_HELP,
        _EXAMPLES,
    )
    add = parser.add_argument
    add("records", metavar="T.npz", nargs="+", help="what `moekit record` has written")
    add("--kind", choices=_KINDS, default="load", help="(%(default)s)")
    add("--layer", type=int, metavar="N", help="the model's number of a layer (the middle one)")
    add("--by", choices=("expert", "margin"), default="expert", help="colours of text (expert)")
    add("--out", metavar="P", help="png, svg or pdf; html for text, which else goes to the screen")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..record import Record

    if args.kind == "specialisation":
        return _specialisation(args)
    if args.kind == "saturation":
        return _saturation(args)
    if len(args.records) != 1:
        raise ValueError(f"[plot] {len(args.records)} files; --kind {args.kind} takes one")
    record = Record.load(args.records[0])
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


def _named_records(paths: list[str]) -> "dict[str, Record]":
    from ..record import Record

    names = [Path(path).stem for path in paths]
    if len(set(names)) != len(names):
        raise ValueError(f"[plot] two files are called {max(names, key=names.count)}.npz")
    return {name: Record.load(path) for name, path in zip(names, paths, strict=True)}


def _saturation(args: argparse.Namespace) -> int:
    """A line of shares for each earlier checkpoint, and the picture where --out is given."""
    from ..analysis import saturation

    if len(args.records) < 2:
        raise ValueError("[plot] 1 file; --kind saturation compares earlier ones with the last")
    earlier = _named_records(args.records)
    last, final = earlier.popitem()
    print(f"experts of {last} chosen already, in layers {final.layers.tolist()}")
    for name, record in earlier.items():
        shares = " ".join(f"{share:6.1%}" for share in saturation(record, final))
        print(f"{name:>16} {shares}")
    if args.out is not None:
        from ..analysis import plots

        plots.save(plots.saturation_figure(earlier, final), args.out)
        print(args.out)
    return 0


def _specialisation(args: argparse.Namespace) -> int:
    """The findings in words, and their picture where --out is given."""
    from ..analysis import specialisation

    found = specialisation(_named_records(args.records))
    print(found)
    if args.out is not None:
        from ..analysis import plots

        plots.save(plots.specialisation_figure(found), args.out)
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
