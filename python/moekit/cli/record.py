"""`moekit record`: the routing of a text, in a file that NumPy alone can read."""

import argparse
import json
import sys
from typing import Any

from . import options

_EXAMPLES = """\
  moekit record "The cat sat on the mat." --out cat.npz
  moekit record - --out prose.npz --model ./my-model --logits < prose.txt
  moekit record "Once upon a time" --max-new-tokens 64 --margins --out story.npz
  python -c "import numpy as np; print(np.load('cat.npz')['experts'].shape)"
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the `moekit` parser."""
    parser = options.add_parser(
        subparsers,
        "record",
        "write down which experts each token of a text goes to",
        "Reads TEXT (and goes on from it, with --max-new-tokens) and saves experts and weights "
        "[tokens, layers, K].",
        _EXAMPLES,
    )
    parser.add_argument("text", metavar="TEXT", help='the text; "-" reads standard input')
    parser.add_argument("--out", required=True, metavar="T.npz", help="the file to write")
    parser.add_argument("--logits", action="store_true", help="the routers' logits as well")
    parser.add_argument(
        "--margins", action="store_true", help="how far the last chosen score lies above the next"
    )
    options.add_model_options(parser)
    options.add_sampling_options(parser, max_new_tokens=0)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..generate import prefill

    model = options.load_model(args)
    text = options.text_of(args.text)
    with model.record(logits=args.logits, margins=args.margins) as record:
        if args.max_new_tokens > 0:
            model.generate(text, **options.sampling_of(args))
        else:
            prefill(model, text)
    record.save(args.out)
    if args.json:
        figures = {
            "out": args.out,
            "tokens": len(record),
            "layers": record.layers.tolist(),
            "k": record.experts.shape[2],
            "policy": record.policy,
        }
        print(json.dumps({**figures, "counts": record.counts.tolist()}))
        return 0
    from rich.console import Console

    from .picture import expert_strips

    console = Console(file=sys.stdout, highlight=False)
    console.print(f"{args.out}: {record!r}", soft_wrap=True)
    if len(record.layers):
        console.print(expert_strips(record, console.width))
    return 0
