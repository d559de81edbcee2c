"""Arguments that several commands share, and what they mean."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..nn import Model


def add_parser(
    subparsers: Any, name: str, text: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """The parser of one command, with examples below its --help."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=text,
        description=description,
        epilog="examples:\n" + examples.rstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--model, --format, --threads."""
    parser.add_argument(
        "--model", metavar="PATH", help="a checkpoint directory (default: the model in the package)"
    )
    parser.add_argument(
        "--format",
        metavar="F",
        help="of the weights in memory: f32 bf16 f16 int8 int4 ... (default: as in the file)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="(default: all that are there)")


def add_sampling_options(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """--max-new-tokens, --temperature, --top-k, --top-p, --min-p, --seed, --stop."""
    add = parser.add_argument
    add("--max-new-tokens", type=int, default=max_new_tokens, metavar="N", help="(%(default)s)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest (0)")
    add("--top-k", type=int, default=0, metavar="K", help="keep the K likeliest tokens (0: all)")
    add("--top-p", type=float, default=1.0, metavar="P", help="keep probability P (1: all)")
    add("--min-p", type=float, default=0.0, metavar="P", help="share of the likeliest's (0: all)")
    add("--seed", type=int, metavar="S", help="makes sampling repeatable")
    add("--stop", action="append", metavar="TEXT", help="end before this text (repeatable)")


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `generate` that the options name."""
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop")
    return {name: getattr(args, name) for name in names}


def load_model(args: argparse.Namespace) -> "Model":
    """The model of --model, or the one in the package."""
    import moekit

    if args.model is None:
        return moekit.load(moekit.demo_path(), format=args.format, threads=args.threads)
    return moekit.load(args.model, format=args.format, threads=args.threads)


def text_of(text: str) -> str:
    """The text argument; "-" reads standard input."""
    return sys.stdin.read() if text == "-" else text
