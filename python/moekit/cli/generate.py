"""`moekit generate`: a text goes on, then the speed and a picture of the experts."""

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from . import options

if TYPE_CHECKING:
    from ..nn import Model
    from ..record import Record

_EXAMPLES = """\
  moekit generate "Once upon a time"
  moekit generate "def quicksort(items):" --max-new-tokens 80 --temperature 0.7 --seed 1
  moekit generate "Once upon a time" --model ./my-model --format int4 --json
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the `moekit` parser."""
    parser = options.add_parser(
        subparsers,
        "generate",
        "continue a text, and show which experts did it",
        "Continues TEXT on standard output; speed and experts follow on standard error.",
        _EXAMPLES,
    )
    parser.add_argument("text", metavar="TEXT", help='the prompt; "-" reads standard input')
    options.add_model_options(parser)
    options.add_sampling_options(parser, max_new_tokens=128)
    parser.add_argument("--quiet", action="store_true", help="the text alone")
    parser.add_argument("--json", action="store_true", help="print text and figures as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    model = options.load_model(args)
    prompt = options.text_of(args.text)
    with model.record() as record:
        figures = _generate(model, prompt, args)
    if args.json:
        figures["experts"] = _experts_by_layer(record)
        print(json.dumps(figures, ensure_ascii=False, indent=2))
    elif not args.quiet:
        _report(figures, record)
    return 0


def _generate(model: "Model", prompt: str, args: argparse.Namespace) -> dict[str, Any]:
    """Stream to stdout unless JSON is wanted; the text, the tokens and the times."""
    from ..generate import start

    show = not args.json
    begin = time.perf_counter()
    run = start(model, prompt, **options.sampling_of(args))
    if show and not args.quiet:
        print(prompt, end="", flush=True)
    pieces: list[str] = []
    arrivals: list[float] = []
    for _, _, piece in run.steps:
        arrivals.append(time.perf_counter())
        pieces.append(piece)
        if show and piece:
            print(piece, end="", flush=True)
    if show:
        print(flush=True)
    # The first token ends the prompt's pass; the others are decoding.
    first = arrivals[0] if arrivals else begin
    decoding = arrivals[-1] - first if arrivals else 0.0
    prompt_tokens = len(run.replies[0].prompt)
    return {
        "text": "".join(pieces),
        "prompt_tokens": prompt_tokens,
        "new_tokens": len(arrivals),
        "prompt_tokens_per_second": _rate(prompt_tokens, first - begin),
        "decode_tokens_per_second": _rate(len(arrivals) - 1, decoding),
    }


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None


def _report(figures: dict[str, Any], record: "Record") -> None:
    from rich.console import Console

    from .picture import expert_strips

    sys.stdout.flush()
    console = Console(stderr=True, highlight=False)
    parts = []
    for what, count in (("prompt", "prompt_tokens"), ("decode", "new_tokens")):
        rate = figures[f"{what}_tokens_per_second"]
        speed = f" at {rate:,.0f}/s" if rate else ""
        parts.append(f"{what}: {figures[count]} tokens{speed}")
    console.print("\n[dim]" + "   ".join(parts) + "[/dim]")
    if len(record.layers):
        console.print(expert_strips(record, console.width))


def _experts_by_layer(record: "Record") -> list[dict[str, Any]]:
    counts = record.counts
    return [
        {"layer": int(layer), "counts": counts[i, : record.num_experts[i]].tolist()}
        for i, layer in enumerate(record.layers)
    ]
