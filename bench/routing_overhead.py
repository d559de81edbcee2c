#!/usr/bin/env python3
"""What looking at routing costs: decode and prompt with and without hooks, in turns.

Each round runs every mode once, in an order of its own, so that what the machine does meanwhile
meets all of them. The figure is the median over rounds of (time of the mode / time of the plain
mode of that round) - 1, with the quartiles; `plain again` is the noise: the plain mode against
itself. Prints, asserts nothing.

    PYTHONPATH=python python bench/routing_overhead.py
    ... --model ./my-model --format int8 --rounds 60 --tokens 32
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import numpy as np

import moekit as mk


def modes(model: Any) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    first = model.moe_layers[0]

    def both() -> AbstractContextManager[Any]:
        stack = ExitStack()
        stack.enter_context(model.intervene())
        stack.enter_context(model.record(counters=True))
        return stack

    return {
        "plain": nullcontext,
        "plain again": nullcontext,
        "empty intervention": model.intervene,
        "counters": lambda: model.record(counters=True),
        "empty intervention + counters": both,
        "record": model.record,
        "record, margins": lambda: model.record(margins=True),
        "bias of one expert": lambda: model.intervene(bias={(first, 0): 1e-9}),
    }


def main() -> None:
    args = arguments()
    model = mk.load(args.model or mk.demo_path(), format=args.format, threads=args.threads)
    rng = np.random.default_rng(0)
    prompt = rng.integers(1, model.vocab_size, args.prompt).astype(np.int32)
    start = model.new_cache()
    model.logits([prompt], start, last=True)
    token = np.array([7], np.int32)

    def decode() -> None:
        cache = start.fork()
        for _ in range(args.tokens):
            model.logits([token], cache, last=True)

    def read() -> None:
        model.logits([prompt], last=True)

    def step() -> None:
        model.logits([token], start.fork(), last=True)

    print(f"{model!r}; {args.rounds} rounds, {args.tokens} tokens decoded, {args.prompt} read")
    for name, work in (("decode", decode), ("prompt", read)):
        times = rounds(work, step, modes(model), args.rounds, args.clock)
        report(name, times, args.tokens if name == "decode" else args.prompt)


def rounds(
    work: Callable[[], None],
    step: Callable[[], None],
    ways: dict[str, Callable[[], AbstractContextManager[Any]]],
    count: int,
    clock: str,
) -> dict[str, list[float]]:
    now = time.process_time_ns if clock == "cpu" else time.perf_counter_ns
    times: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    shuffle = random.Random(0)
    for _ in range(count):
        shuffle.shuffle(order)
        for name in order:
            with ways[name]():
                for _ in range(3):  # what opening the block has driven out of the caches
                    step()
                begin = now()
                work()
                times[name].append(now() - begin)
    return times


def report(name: str, times: dict[str, list[float]], tokens: int) -> None:
    plain = times["plain"]
    print(f"\n{name}: {statistics.median(plain) / tokens / 1e3:.1f} us a token")
    print(f"{'':32}{'median':>9}{'quartiles':>20}{'ns a token':>12}")
    for mode, own in times.items():
        if mode == "plain":
            continue
        ratios = [100 * (a / b - 1) for a, b in zip(own, plain, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        extra = statistics.median(a - b for a, b in zip(own, plain, strict=True)) / tokens
        print(f"{mode:32}{middle:+8.2f}%{low:+10.2f} to{high:+6.2f}%{extra:+12.0f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", metavar="PATH", help="(default: the model in the package)")
    parser.add_argument("--format", metavar="F", help="of the weights in memory")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=40, help="(%(default)s)")
    parser.add_argument("--tokens", type=int, default=24, help="decoded a round (%(default)s)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens read (%(default)s)")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time of the process, for machines that others use too (%(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
