#!/usr/bin/env python3
"""How fast attention reads a cache (decode) and multiplies (prompts), format by format.

Shapes are a head's of published models: grouped queries 32 over 8 and 16 over 16 with 128 columns,
latent attention of 128 and of 16 heads over rows of 512 + 64. A decode step's limit is reading the
keys and values once; caches take turns in `--pool` MiB, so that they come from memory. The shares
are of the read bandwidth measured between the steps. For prompts the operations are those of the
visible half. Formats take turns in each round; figures are medians. Prints, asserts nothing.
With `--torch` its scaled_dot_product_attention takes turns with prompts of the same shapes.

    PYTHONPATH=python python bench/attention_speed.py --clock cpu --threads 1
    ... --only decode --shapes mla128 --formats bf16 --keys 4096
    ... --only prompt --shapes mha16,gqa32/8 --formats bf16 --torch
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from moekit import ops
from moekit.nn.kv_cache import KVCache
from moekit.ops.attention import attention, mla_attention
from moekit.ops.limits import LimitProbe, threads_set_to

FORMATS = ("f32", "bf16", "f16", "int8")
BYTES = {"f32": 4.0, "bf16": 2.0, "f16": 2.0, "int8": 1.0}


@dataclass(frozen=True)
class Shape:
    """`heads` queries of `width` columns over `kv_heads` keys; values of `value` columns."""

    heads: int
    kv_heads: int
    width: int
    value: int
    latent: bool = False

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        if self.latent:
            return ((self.width,),)
        return (self.kv_heads, self.width), (self.kv_heads, self.value)

    def cache_bytes(self, keys: int, kind: str) -> float:
        numbers = sum(float(np.prod(row)) for row in self.rows)
        scales = sum(float(np.prod(row[:-1])) for row in self.rows) if kind == "int8" else 0.0
        return keys * (numbers * BYTES[kind] + 4 * scales)

    def operations(self, queries: int, keys: int) -> float:
        """Multiplications and additions over the keys that each query sees."""
        seen = queries * keys - queries * (queries - 1) // 2
        return 2.0 * self.heads * seen * (self.width + self.value)


SHAPES = {
    "gqa32/8": Shape(32, 8, 128, 128),
    "mha16": Shape(16, 16, 128, 128),
    "mla16": Shape(16, 1, 576, 512, latent=True),
    "mla128": Shape(128, 1, 576, 512, latent=True),
}


class Run:
    """One shape in one format: queries, and the caches that its steps go through in turn."""

    def __init__(self, shape: Shape, kind: str, keys: int, queries: int, pool: float) -> None:
        self.shape, self.kind, self.keys, self.queries = shape, kind, keys, queries
        rng = np.random.default_rng(0)
        count = max(1, int(pool / shape.cache_bytes(keys, kind)))
        first = KVCache([shape.rows], kind)
        rows = [rng.standard_normal((keys, *row), np.float32) for row in shape.rows]
        self.caches = [first.append(0, *rows)]
        self.owners = [first]
        for _ in range(count - 1):
            cache = first.fork()
            cache.append(0, *(part[:0] for part in rows))  # a fork copies when it first writes
            self.owners.append(cache)
            self.caches.append(cache.view(0))
        q = rng.standard_normal((queries, shape.heads, shape.width), np.float32)
        self.parts: tuple[np.ndarray, ...] = (q,)
        if shape.latent:
            self.parts = (q[..., : shape.value].copy(), q[..., shape.value :].copy())
        self.times: list[float] = []
        self.step()

    def step(self) -> None:
        rows = self.caches[len(self.times) % len(self.caches)]
        if self.shape.latent:
            mla_attention(*self.parts, *rows, scale=self.shape.width**-0.5)
        else:
            attention(*self.parts, *rows)

    def timed(self, now: Callable[[], float]) -> None:
        start = now()
        self.step()
        self.times.append(now() - start)


class TorchRun:
    """The same prompt in torch, [1, heads, tokens, columns] as its models keep it."""

    def __init__(self, shape: Shape, kind: str, tokens: int, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[kind]
        widths = (shape.heads, shape.width), (shape.kv_heads, shape.width)
        rows = (*widths, (shape.kv_heads, shape.value))
        q, k, v = (torch.randn(1, heads, tokens, width).to(dtype) for heads, width in rows)
        self.shape, self.kind, self.times = shape, kind, list[float]()

        def step() -> None:
            with torch.inference_mode():
                torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=True, enable_gqa=shape.heads != shape.kv_heads
                )

        self.step = step
        step()

    def timed(self, now: Callable[[], float]) -> None:
        start = now()
        self.step()
        self.times.append(now() - start)


def measure(runs: list[Run | TorchRun], probe: LimitProbe, rounds: int) -> tuple[float, float]:
    bandwidths, peaks = [], []
    for _ in range(rounds):
        bandwidths.append(probe.read_bandwidth())
        peaks.append(probe.multiply_peak("f32"))
        for run in runs:
            for _ in range(3):
                run.timed(probe.now)
    return statistics.median(bandwidths), statistics.median(peaks)


def main() -> None:
    args = arguments()
    with threads_set_to(args.threads):
        probe = LimitProbe(args.pool << 20, args.clock)
        print(f"{ops.config()['isa']}, {args.threads} threads, {args.clock} clock")
        for name in args.shapes.split(","):
            shape = SHAPES[name]
            if args.only != "prompt":
                for keys in args.keys:
                    report(args, probe, name, [(shape, kind, keys, 1) for kind in args.formats])
            if args.only != "decode":
                for count in args.prompts:
                    report(
                        args, probe, name, [(shape, kind, count, count) for kind in args.formats]
                    )


def report(
    args: Any, probe: LimitProbe, name: str, cases: list[tuple[Shape, str, int, int]]
) -> None:
    pool = float(args.pool << 20)
    runs = [Run(*case, pool if case[3] == 1 else 1.0) for case in cases]
    peers = [
        TorchRun(shape, kind, queries, args.threads)
        for shape, kind, _, queries in cases
        if args.torch and queries > 1 and kind != "int8" and not shape.latent
    ]
    bandwidth, peak = measure([*runs, *peers], probe, args.rounds)
    for run in runs:
        seconds = statistics.median(run.times)
        size = run.shape.cache_bytes(run.keys, run.kind)
        work = run.shape.operations(run.queries, run.keys) / seconds
        what = "decode" if run.queries == 1 else "prompt"
        print(
            f"{what} {name:8} {run.kind:5} {run.keys:6} keys {1e3 * seconds:9.3f} ms "
            f"{size / seconds / 1e9:6.1f} GB/s, {100 * size / seconds / bandwidth:4.0f} % of "
            f"{bandwidth / 1e9:.0f}; {work / 1e9:7.0f} GFLOP/s, {work / peak:5.2f} of f32's peak",
            flush=True,
        )
    for peer in peers:
        seconds = statistics.median(peer.times)
        ours = next(statistics.median(run.times) for run in runs if run.kind == peer.kind)
        print(
            f"torch  {name:8} {peer.kind:5} {cases[0][3]:6} keys {1e3 * seconds:9.3f} ms, "
            f"{seconds / ours:.2f} times ours",
            flush=True,
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("decode", "prompt"))
    parser.add_argument("--shapes", default=",".join(SHAPES), help="(%(default)s)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--keys", type=int, nargs="+", default=[4096, 16384], help="decode")
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 2048], help="tokens")
    parser.add_argument("--torch", action="store_true", help="beside prompts")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--pool", type=int, default=768, metavar="MIB", help="(%(default)s)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    return parser.parse_args()


if __name__ == "__main__":
    main()
