"""`moekit quantize`: a checkpoint in fewer bits."""

import argparse
import json
import os
import sys
from typing import Any

from ..errors import FileError
from . import options

_EXAMPLES = """\
  moekit quantize ./my-model --format int4 --out my-model-int4
  moekit quantize ./my-model --format int4 --set down=int8 --set 3/17=bf16 \\
      --set 'layers.0.*=int8' --method gptq --calibration texts/ --out my-model-int4
  moekit quantize ./my-model --budget 4.2 --calibration prose.txt --out my-model-4.2
"""
MAX_TEXT_BYTES = 64 << 20


def add_parser(subparsers: Any) -> None:
    """Add the command to the `moekit` parser."""
    parser = options.add_parser(
        subparsers,
        "quantize",
        "a model in fewer bits, into a new directory",
        "Rounds MODEL's weights layer by layer. The router stays in float32 and the head in 8 bits "
        "unless --set says otherwise.",
        _EXAMPLES,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help='a checkpoint directory; "demo" is the model in the package')
    add("--out", required=True, metavar="DIR", help="a new directory (or, for GGUF, file)")
    add(
        "--layout",
        choices=["moekit", "gptq", "gguf"],
        help="of the output: moekit's own, GPTQ's for transformers and vLLM, a GGUF file "
        "(of itself where DIR ends in .gguf)",
    )
    add("--format", metavar="F", help="of all matrices: int8 int4 int4_g32 mxfp4 ...")
    add(
        "--set",
        action="append",
        default=[],
        metavar="WHAT=F",
        help="a role (router experts gate_up down shared dense attention head embedding), a "
        "pattern (layers.0.*) or an expert (LAYER/EXPERT); repeatable",
    )
    add("--budget", type=float, metavar="B", help="bytes of the weights, or bits if below 32")
    add("--candidates", metavar="F,F,..", help="the formats a budget chooses from")
    add("--method", default="rtn", choices=["rtn", "gptq", "awq"], help="(%(default)s)")
    add("--calibration", metavar="TEXTS", help="a text file, or a directory of *.txt")
    add("--window", type=int, default=512, metavar="N", help="tokens read at once (%(default)s)")
    add("--min-tokens", type=int, default=32, metavar="N", help="an expert needs (%(default)s)")
    add("--all-experts", action="store_true", help="calibrate every expert with every token")
    add("--force", action="store_true", help="a router below 8 bits all the same")
    add("--overwrite", action="store_true", help="replace an earlier directory of this command")
    add("--threads", type=int, metavar="N", help="(default: all that are there)")
    add("--json", action="store_true", help="print figures as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import moekit

    recipe: dict[str, Any] = {} if args.format is None else {"default": args.format}
    for setting in args.set:
        what, equals, name = setting.partition("=")
        if not equals:
            raise ValueError(f"[quantize] --set {setting}; WHAT=FORMAT is required")
        recipe[what] = name
    if args.budget is not None:
        recipe["budget"] = args.budget
    if args.candidates is not None:
        recipe["candidates"] = args.candidates.split(",")
    if args.force:
        recipe["force"] = True
    if not recipe:
        raise ValueError("[quantize] nothing to do; --format, --set or --budget is required")
    if args.threads is not None:
        moekit.ops.set_num_threads(args.threads)
    texts = None if args.calibration is None else texts_of(args.calibration)
    path = moekit.demo_path() if args.model == "demo" else args.model
    layout = args.layout or ("gguf" if args.out.lower().endswith(".gguf") else "moekit")
    model = moekit.quantize(
        path,
        recipe,
        texts,
        args.method,
        out=args.out,
        layout=layout,
        min_tokens=args.min_tokens,
        all_experts=args.all_experts,
        window=args.window,
        overwrite=args.overwrite,
    )
    notes = model.quantization
    if args.json:
        print(json.dumps({"out": args.out, **notes.to_dict()}))
        return 0
    print_notes(args.out, notes)
    return 0


def texts_of(path: str) -> list[str]:
    """The texts of a file, or of the *.txt in a directory."""
    names = [path]
    if os.path.isdir(path):
        names = sorted(entry.path for entry in os.scandir(path) if entry.name.endswith(".txt"))
    texts = [_text_of(name) for name in names]
    if not any(text.strip() for text in texts):
        raise ValueError(f"[texts] {path}: no text; a file or a directory of *.txt is required")
    return texts


def _text_of(name: str) -> str:
    try:
        size = os.path.getsize(name)
        if size > MAX_TEXT_BYTES:
            raise ValueError(f"[texts] {name} has {size} bytes; at most {MAX_TEXT_BYTES} are read")
        with open(name, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as problem:
        raise FileError(f"[texts] {name}: is no UTF-8 at byte {problem.start}") from problem
    except OSError as problem:
        # Bad input like any other: status 1 of check-quant says that a threshold was passed.
        raise FileError(f"[texts] {name}: {problem.strerror}") from problem


def print_notes(out: str, notes: Any) -> None:
    """A table by role, and the experts that had too little text."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout, highlight=False)
    formats = ", ".join(f"{count} {name}" for name, count in notes.formats().items())
    console.print(f"{out}: {notes.nbytes:,} bytes; matrices: {formats}", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in ("role", "matrices", "bytes", "mean error", "largest error"):
        table.add_column(column, justify="left" if column == "role" else "right")
    for role, row in notes.by_role().items():
        table.add_row(
            role,
            f"{row['matrices']:.0f}",
            f"{row['bytes']:,.0f}",
            f"{row['mean_error']:.2e}",
            f"{row['max_error']:.2e}",
        )
    console.print(table)
    if notes.fallbacks:
        shown = ", ".join(f"{n}/{e} ({tokens})" for n, e, tokens in notes.fallbacks[:12])
        more = f" and {len(notes.fallbacks) - 12} more" if len(notes.fallbacks) > 12 else ""
        console.print(
            f"rounded without calibration, layer/expert (tokens): {shown}{more}", soft_wrap=True
        )
