"""`moekit COMMAND ...`: finds the command, runs it, turns exceptions into one line and a status."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

# command -> what `moekit --help` says about it. Its module is cli/<command>.py ("-" becomes "_")
# with add_parser(subparsers) and run(args) -> status; nothing else of it is imported.
COMMANDS = {
    "generate": "continue a text, and show which experts did it",
    "chat": "talk with a model",
    "record": "write down which experts each token of a text goes to",
    "plot": "draw a recorded routing",
    "quantize": "a model in fewer bits, into a new directory",
    "check-quant": "how a quantised model differs: routing, experts, predictions",
    "inspect": "what a checkpoint holds, from its headers",
    "bench": "time the block, and compare with what the machine can do",
    "plan": "parameters, memory, speed and cost of a model, from its configuration",
}

BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0, 2 for bad input, 1 for what this machine cannot do, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal or a pipe of 7 or 8 bits gets "?" for what it lacks, and not an error.
        sys.stdout.reconfigure(errors="replace")
    try:
        args = _parser(arguments).parse_args(arguments)
        if args.run is None:
            _parser([]).print_help()
            return 0
        status = args.run(args)
        sys.stdout.flush()
        return int(status)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone (`| head`). Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError) as error:
        return _fail(error, BAD_INPUT)
    except (RuntimeError, MemoryError, OSError, ImportError) as error:
        return _fail(error, 1)


def _fail(error: BaseException, status: int) -> int:
    lines = str(error).splitlines() or [type(error).__name__]
    print(f"moekit: {lines[0]}", file=sys.stderr)
    return status


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moekit",
        description="Mixture-of-experts models on CPUs. Without --model, commands run the small "
        "model that comes with the package.",
        epilog='example: moekit generate "Once upon a time" --max-new-tokens 64',
    )
    parser.add_argument("--version", action="version", version=f"moekit {_version()}")
    parser.set_defaults(run=None)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, text in COMMANDS.items():
        if name == chosen:
            import_module(f"moekit.cli.{name.replace('-', '_')}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=text)
    return parser


def _version() -> str:
    from moekit import __version__

    return __version__


if __name__ == "__main__":
    sys.exit(main())
