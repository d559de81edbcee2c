#!/usr/bin/env python3
"""Whole models: moekit beside llama.cpp on the same GGUF file and transformers on the same
directory, taking turns in one run.

A checkpoint with random weights in the size of a published model, cut to a few layers, is written
once in bfloat16 and as a GGUF file of each format. Each round measures the read bandwidth and lets
everybody read a prompt at once and then more tokens one by one, random ones all. Tokens per second
are medians; a ratio above 1 means that moekit is faster; the share is that of the bandwidth
measured beside, for the bytes of weights and cache that a token has to read. llama.cpp runs in a
process of its own (MOEKIT_LLAMA_PYTHON) with its defaults; of transformers' experts implementations
the best counts. Libraries that are not there are skipped with a line that says so.

    PYTHONPATH=python python bench/whole_model.py
    ... --model qwen3-30b-a3b --layers 4 --format q4_0,bf16 --rounds 9
    ... --threads 1 --clock cpu --against llama.cpp --json > rates.json
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from whole_model.checkpoints import CONFIGS, directory_of, gguf_of, remove
from whole_model.contender import Contender, Missing
from whole_model.llama_cpp_process import LlamaCpp
from whole_model.moekit_model import Moekit
from whole_model.transformers_model import Transformers

from moekit import _core
from moekit.ops.limits import LimitProbe

PEERS = ("llama.cpp", "transformers")


@dataclass
class Line:
    model: str
    format: str
    contender: str
    prompt_rate: float = 0.0
    decode_rate: float = 0.0
    bandwidth_share: float = 0.0
    prompts: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)

    def finish(self, prompt: int) -> None:
        """Rates of a prompt of so many tokens and of the tokens after it, per second."""
        self.prompt_rate = prompt / statistics.median(self.prompts)
        self.decode_rate = 1 / statistics.median(self.tokens)


def main() -> int:
    args = arguments()
    _core.set_num_threads(args.threads)
    probe = LimitProbe(clock=args.clock)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # checkpoints are deleted then, too
    root = Path(args.dir or tempfile.mkdtemp(prefix="whole_model."))
    lines: list[Line] = []
    try:
        for name in args.model:
            folder = directory_of(root, name, args.layers)
            if "llama.cpp" in args.against:
                for format in args.format:
                    lines += beside_llama(folder, format, probe, args)
            if "transformers" in args.against:
                lines += beside_transformers(folder, probe, args)
    finally:
        if not args.dir:
            remove(root)
    if args.json:
        print(json.dumps([asdict(line) for line in lines], indent=2))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    words = lambda text: text.split(",")  # noqa: E731
    add("--model", action="append", choices=tuple(CONFIGS), help="both unless given")
    add("--layers", type=int, default=4)
    add("--format", type=words, default=["q4_0", "q4_k", "q8_0", "bf16"], help="with commas")
    add("--against", type=words, default=list(PEERS), help="with commas (both)")
    add("--prompt", type=int, default=512, help="tokens (512)")
    add("--decode", type=int, default=24, help="tokens in each round (24)")
    add("--rounds", type=int, default=5, help="turns for each (5)")
    add("--kv-format", default="f16", help="moekit's cache; llama.cpp has f16, transformers bf16")
    add("--threads", type=int, default=_core.num_threads())
    add("--clock", choices=("wall", "cpu"), default="wall", help="as in `moekit bench`")
    add("--dir", help="where checkpoints are kept; otherwise they are deleted at the end")
    add("--json", action="store_true")
    args = parser.parse_args()
    args.model = args.model or list(CONFIGS)
    return args


def beside_llama(
    folder: Path, format: str, probe: LimitProbe, args: argparse.Namespace
) -> list[Line]:
    path = gguf_of(folder, format)
    contenders: list[Contender] = [Moekit(path, probe, kv_format=args.kv_format)]
    try:
        contenders.append(LlamaCpp(path, args.threads, args.clock, Missing))
    except Missing as missing:
        say(f"skipped: {missing}")
    return take_turns(folder.name, format, contenders, probe, args)


def beside_transformers(folder: Path, probe: LimitProbe, args: argparse.Namespace) -> list[Line]:
    contenders: list[Contender] = [Moekit(folder, probe, kv_format=args.kv_format)]
    try:
        contenders += Transformers(folder, args.threads, Missing).contenders(probe)
    except Missing as missing:
        say(f"skipped: {missing}")
    return take_turns(folder.name, "bf16", contenders, probe, args)


def take_turns(
    model: str,
    format: str,
    contenders: list[Contender],
    probe: LimitProbe,
    args: argparse.Namespace,
) -> list[Line]:
    ours = contenders[0]
    assert isinstance(ours, Moekit)
    lines = {contender.name: Line(model, format, contender.name) for contender in contenders}
    random = np.random.default_rng(0)
    bandwidths: list[float] = []
    for turn in range(-1, args.rounds):  # the first one warms up
        ids, more = (
            random.integers(0, ours.model.vocab_size, count).tolist()
            for count in (args.prompt, args.decode)
        )
        # On virtual machines memory that has rested for seconds is slow when it is read again.
        bandwidths.append(max(probe.read_bandwidth() for _ in range(3)))
        # Everybody is first as often as last.
        for contender in contenders if turn % 2 == 0 else contenders[::-1]:
            time.sleep(0.05)  # the last one's threads may still be spinning
            try:
                prompt = contender.prompt(ids)
                tokens = contender.decode(more)
            except Missing as missing:
                say(f"skipped: {missing}")
                lines.pop(contender.name)
                contenders = [other for other in contenders if other is not contender]
                continue
            if turn >= 0:
                lines[contender.name].prompts.append(prompt)
                lines[contender.name].tokens += tokens
    for line in lines.values():
        line.finish(args.prompt)
    nbytes = ours.bytes_per_token(args.prompt + args.decode // 2)
    report(list(lines.values()), nbytes, statistics.median(bandwidths))
    for contender in contenders:
        contender.close()
    del ours
    contenders.clear()
    gc.collect()
    return list(lines.values())


def report(lines: list[Line], nbytes: float, bandwidth: float) -> None:
    own = lines[0]
    own.bandwidth_share = nbytes * own.decode_rate / bandwidth
    say(
        f"\n{own.model} {own.format}: a token reads {nbytes / 1e6:.0f} MB, the machine "
        f"{bandwidth / 1e9:.1f} GB/s; {own.bandwidth_share:.0%} of that in decode"
    )
    for line in lines:
        text = f"  {line.contender:24}{line.prompt_rate:9.1f} prompt{line.decode_rate:9.2f} decode"
        if line is not own:
            prompt = f"{own.prompt_rate / line.prompt_rate:.2f} x" if line.prompt_rate else "-"
            text += f"   moekit is {prompt} and {own.decode_rate / line.decode_rate:.2f} x as fast"
        say(text)
    theirs = [line for line in lines if line.contender.startswith("transformers")]
    if theirs:
        prompt = own.prompt_rate / max(line.prompt_rate for line in theirs)
        decode = own.decode_rate / max(line.decode_rate for line in theirs)
        say(f"  against the best of transformers: {prompt:.2f} x and {decode:.2f} x")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
