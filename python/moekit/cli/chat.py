"""`moekit chat`: a conversation in the terminal."""

import argparse
import sys
from typing import Any

from . import options

_EXAMPLES = """\
  moekit chat
  moekit chat --model ./my-model --format int8 --temperature 0.7 --system "Answer briefly."
  echo "What is a mixture of experts?" | moekit chat --model ./my-model
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the `moekit` parser."""
    parser = options.add_parser(
        subparsers,
        "chat",
        "talk with a model",
        "Reads a line, answers, reads the next; an empty line or Ctrl-D ends, Ctrl-C stops an "
        "answer, /new begins again.",
        _EXAMPLES,
    )
    options.add_model_options(parser)
    options.add_sampling_options(parser, max_new_tokens=512)
    parser.add_argument("--system", metavar="TEXT", help="instructions that come first")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    model = options.load_model(args)
    first = [{"role": "system", "content": args.system}] if args.system else []
    messages = list(first)
    terminal = sys.stdin.isatty()
    while True:
        said = _read_line(terminal)
        if not said:
            return 0
        if said == "/new":
            messages = list(first)
            continue
        messages.append({"role": "user", "content": said})
        pieces: list[str] = []
        try:
            for piece in model.stream_chat(messages, **options.sampling_of(args)):
                pieces.append(piece)
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            if not terminal:
                raise
        print(flush=True)
        messages.append({"role": "assistant", "content": "".join(pieces)})


def _read_line(terminal: bool) -> str:
    """What the user says next; "" at the end."""
    try:
        return input("> " if terminal else "").strip()
    except EOFError:
        return ""
