#!/usr/bin/env python3
"""moekit beside other libraries: the same layer, the same data, in one process, taking turns.

Each round measures the read bandwidth and the multiply peak, then every library once, so that what
the machine does meanwhile meets all of them. A ratio is a median time over moekit's: above 1,
moekit is faster. Outputs are compared with the definition first; a library that computes something
else is marked. Libraries that are not installed are skipped with a line that says so.

    PYTHONPATH=python python bench/peers.py
    ... --shape mixtral-8x7b --format q4_0,q4_k --tokens 1,512 --rounds 9
    ... --only ggml --json > ratios.json
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from peers import MODULES
from peers.layer import Float32, Layer, Missing, Peer, Run

from moekit import _core
from moekit.bench import Shape, choose_experts, parse_shape
from moekit.ops import Assignment
from moekit.ops.limits import LimitProbe

# A peer that computes the same in the coarsest format stays below this share of the signal's power.
LARGEST_ERROR = 0.05
ROUTINGS = 8


@dataclass
class Line:
    shape: str
    experts: int
    format: str
    tokens: int
    peer: str
    error: float = 0.0
    times: list[float] = field(default_factory=list)
    ratio: float = 0.0
    fraction: float = 0.0
    bytes_per_second: float = 0.0
    operations_per_second: float = 0.0


def main() -> int:
    args = arguments()
    _core.set_num_threads(args.threads)
    peers = installed(args)
    probe = LimitProbe(clock=args.clock)
    lines: list[Line] = []
    for text in args.shape:
        for format in args.format:
            shape = fitting(parse_shape(text), format, args.memory)
            layer = Layer(shape)
            lines += compare(layer, format, peers, probe, args)
    if args.json:
        print(json.dumps([asdict(line) for line in lines], indent=2))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = lambda text: text.split(",")  # noqa: E731
    add = parser.add_argument
    add("--shape", action="append", help="a name or H,F,E,K; may be given again (olmoe-1b-7b)")
    add("--format", type=names, default=["f32", "bf16"], help="with commas between (f32,bf16)")
    add("--tokens", type=names, default=["1", "16", "512"], help="with commas (1,16,512)")
    add("--only", type=names, help="peers whose name begins so; moekit always runs")
    add("--threads", type=int, default=_core.num_threads())
    add("--rounds", type=int, default=7, help="turns for each line (7)")
    add("--memory", type=float, default=1.0, help="GiB of weights for each library (1)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="as in `moekit bench`")
    add("--json", action="store_true")
    args = parser.parse_args()
    args.shape = args.shape or ["olmoe-1b-7b"]
    args.tokens = [int(tokens) for tokens in args.tokens]
    return args


def installed(args: argparse.Namespace) -> list[Peer]:
    found: list[Peer] = []
    for name in MODULES:
        try:
            peers = importlib.import_module(f"peers.{name}").load(args.threads)
        except Missing as missing:
            say(f"skipped: {missing}")
            continue
        wanted = ("moekit", *(args.only or [""]))
        found += [peer for peer in peers if peer.name.startswith(wanted)]
    return found


def fitting(shape: Shape, format: str, gib: float) -> Shape:
    """The shape with as many experts as fit into the memory, K at least."""
    known = format in _core.format_names()
    expert_bytes = shape.expert_bytes(format) if known else 12 * shape.hidden * shape.inter
    experts = max(shape.top_k, min(shape.experts, int(gib * 2**30 / expert_bytes)))
    if experts < shape.experts:
        say(f"{shape.name} {format}: {experts} of {shape.experts} experts, {gib} GiB")
    return replace(shape, experts=experts)


def compare(
    layer: Layer, format: str, peers: list[Peer], probe: LimitProbe, args: argparse.Namespace
) -> list[Line]:
    ready = []
    for peer in peers:
        if format not in peer.formats:
            if peer.name == "moekit":
                say(f"skipped: moekit has no {format} in this build")
                return []
            continue
        try:
            peer.pack(layer, format)
            ready.append(peer)
        except Missing as missing:
            say(f"skipped: {missing}")
    lines = []
    for tokens in args.tokens:
        lines += take_turns(layer, format, tokens, ready, probe, args.rounds)
    for peer in ready:
        peer.drop()
    gc.collect()
    return lines


def take_turns(
    layer: Layer, format: str, tokens: int, peers: list[Peer], probe: LimitProbe, rounds: int
) -> list[Line]:
    shape = layer.shape
    x = np.random.default_rng(1).standard_normal((tokens, shape.hidden), np.float32)
    routings = choose_experts(shape, tokens, ROUTINGS)
    touched = statistics.fmean(np.unique(r.experts).size for r in routings)
    runs: dict[str, list[Run]] = {}
    lines: dict[str, Line] = {}
    for peer in peers:
        try:
            runs[peer.name] = [peer.prepare(x, r.experts, r.weights) for r in routings]
            line = Line(shape.name, shape.experts, format, tokens, peer.name)
            line.error = error_of(layer, x, routings[0], runs[peer.name][0]())
            lines[peer.name] = line
        except Missing as missing:
            say(f"skipped: {missing}")
    bandwidths, peaks = [], []
    dot = shape.dot(format)
    for turn in range(rounds):
        bandwidths.append(probe.read_bandwidth())
        peaks.append(probe.multiply_peak(dot))
        # Everybody is first as often as last.
        order = list(lines) if turn % 2 == 0 else list(reversed(lines))
        for name in order:
            time.sleep(0.01)  # the last library's threads may still be spinning
            for at in range(turn, turn + (3 if tokens <= 16 else 1)):
                run = runs[name][at % ROUTINGS]
                start = probe.now()
                run()
                lines[name].times.append(probe.now() - start)
    bandwidth, peak = statistics.median(bandwidths), statistics.median(peaks)
    nbytes, operations = touched * shape.expert_bytes(format), shape.operations(tokens)
    ours = statistics.median(lines["moekit"].times)
    say(
        f"\n{shape.name} ({shape.experts} experts) {format}, {tokens} tokens: "
        f"reads {bandwidth / 1e9:.1f} GB/s, multiplies {peak / 1e9:.0f} Gop/s ({dot})"
    )
    for line in lines.values():
        median = statistics.median(line.times)
        line.ratio = median / ours
        line.bytes_per_second = nbytes / median
        line.operations_per_second = operations / median
        line.fraction = max(nbytes / bandwidth, operations / peak) / median
        wrong = "" if line.error < LARGEST_ERROR else f"   OTHER RESULTS: NMSE {line.error:.1e}"
        say(
            f"  {line.peer:24}{median * 1e3:10.2f} ms  (min {min(line.times) * 1e3:8.2f})"
            f"{line.bytes_per_second / 1e9:7.1f} GB/s{line.operations_per_second / 1e9:8.0f} Gop/s"
            f"{line.fraction:7.0%} of limit{line.ratio:8.2f} x{wrong}"
        )
    return list(lines.values())


def error_of(layer: Layer, x: Float32, routing: Assignment, out: Float32) -> float:
    """NMSE of the first two tokens against the definition."""
    few = slice(0, 2)
    wanted = layer.reference(x[few], routing.experts[few], routing.weights[few])
    return float(((out[few] - wanted) ** 2).sum() / (wanted**2).sum())


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
