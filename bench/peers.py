#!/usr/bin/env python3
"""moekit beside other libraries: the same layer and data in the same run, taking turns.

Every library runs in a process of its own, under the interpreter that a variable names (else this
one): MOEKIT_TORCH_PYTHON, MOEKIT_TRANSFORMERS_PYTHON, MOEKIT_LLAMA_PYTHON (llama.cpp's ggml; or its
libraries' folder in GGML_LIBRARY_DIR), MOEKIT_IK_PYTHON (ik_llama.cpp; IK_LIBRARY_DIR),
MOEKIT_VLLM_PYTHON, MOEKIT_ZENTORCH_PYTHON, MOEKIT_KT_PYTHON (kt-kernel, AMX only),
MOEKIT_ONNXRUNTIME_PYTHON. One that is not found is skipped with a line that says so.

Before that, each output is compared with the definition (two tokens) and with moekit's (all); a
peer that computes something else is marked and stays out of the summary. Each round measures the
read bandwidth and the multiply peak, then every peer once, so that what the machine does meanwhile
meets all of them. A ratio is a peer's median time over moekit's: above 1, moekit is faster; who
takes three times as long sits out after two rounds.

    PYTHONPATH=python python bench/peers.py
    ... --shape mixtral-8x7b --format q4_0,q4_k --tokens 1,512 --rounds 9
    ... --only ggml,vllm --json > ratios.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from peers import LIBRARIES
from peers.comparison import Comparison, Line, say
from peers.layer import Layer, Missing
from peers.library import Library
from peers.summary import summary

from moekit import _core
from moekit.bench import SHAPES, parse_shape
from moekit.ops.limits import LimitProbe

FORMATS = "f32,bf16,f16,fp8,int8,int4,q8_0,q4_0,q4_k"


def main() -> int:
    args = arguments()
    _core.set_num_threads(args.threads)
    probe = LimitProbe(clock=args.clock)
    libraries = found(args)
    lines: list[Line] = []
    try:
        for shape in map(parse_shape, args.shape):
            with tempfile.TemporaryDirectory() as folder:
                layer = Layer(shape)
                layer.save(Path(folder))
                for format in args.format:
                    comparison = Comparison(
                        shape, layer, Path(folder), format, libraries, tuple(args.only)
                    )
                    lines += comparison.run(args.tokens, probe, args.rounds, args.memory)
    except KeyboardInterrupt:
        say("interrupted")
    finally:
        for library in libraries:
            library.close()
    say(summary([line.to_ratio() for line in lines if line.same and line.peer != "moekit"]))
    if args.json:
        print(json.dumps([asdict(line) for line in lines], indent=2))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = lambda text: text.split(",")  # noqa: E731
    add = parser.add_argument
    add("--shape", action="append", help="a name or H,F,E,K; may be given again (all four names)")
    add("--format", type=names, default=names(FORMATS), help=f"with commas between ({FORMATS})")
    add("--tokens", type=names, default=["1", "4", "16", "64", "512"], help="(1,4,16,64,512)")
    add("--only", type=names, default=[""], help="peers whose name begins so; moekit always runs")
    add("--threads", type=int, default=_core.num_threads())
    add("--rounds", type=int, default=7, help="turns for each line (7)")
    add("--memory", type=float, default=1.0, help="GiB of weights for each peer (1)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="as in `moekit bench`")
    add("--json", action="store_true")
    args = parser.parse_args()
    args.shape = args.shape or list(SHAPES)
    args.tokens = [int(tokens) for tokens in args.tokens]
    return args


def found(args: argparse.Namespace) -> list[Library]:
    libraries = []
    for name in LIBRARIES:
        if name != "moekit" and not any(
            name.startswith(wanted) or wanted.startswith(name) for wanted in args.only
        ):
            continue
        try:
            libraries.append(Library(name, args.threads, args.clock))
        except Missing as missing:
            say(f"skipped: {missing}")
    return libraries


if __name__ == "__main__":
    sys.exit(main())
