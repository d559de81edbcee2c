"""One library in a process and an interpreter of its own.

    python -m peers.worker NAME THREADS CLOCK

Requests and answers are lines of JSON, arrays are files. Needs NumPy and the library.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from .layer import Layer, Missing, Peer, PlainSizes, Run


class Worker:
    def __init__(self, peers: list[Peer], threads: int, clock: str) -> None:
        self._peers = peers
        self._now = time.perf_counter
        if clock == "cpu":
            self._now = lambda: time.process_time() / threads
        self._layer: Layer | None = None
        self._x = self._experts = self._weights = np.empty(0)
        self._runs: dict[int, list[Run]] = {}

    def layer(self, sizes: list[int], folder: str) -> None:
        self._layer = Layer.open(PlainSizes(*sizes), Path(folder))

    def pack(self, peer: int, format: str) -> None:
        assert self._layer is not None
        self._peers[peer].pack(self._layer, format)

    def inputs(self, file: str) -> None:
        """x [T, H], and R routings: experts and weights [R, T, K]."""
        self._runs.clear()
        for peer in self._peers:
            peer.release()
        with np.load(file) as arrays:
            self._x, self._experts, self._weights = (
                arrays[name] for name in ("x", "experts", "weights")
            )

    def prepare(self, peer: int, out: str) -> None:
        """Runs every routing once, two if that takes long, and writes the first one's output."""
        this, runs = self._peers[peer], []
        start = time.perf_counter()
        for experts, weights in zip(self._experts, self._weights, strict=True):
            run = this.prepare(self._x, experts, weights)
            result = run()
            if not runs:
                np.save(out, this.values(result))
            runs.append(run)
            if len(runs) > 1 and time.perf_counter() > start + 1:
                break
        self._runs[peer] = runs

    def run(self, peer: int, first: int, count: int) -> list[float]:
        """Seconds of so many routings in turn."""
        runs, seconds = self._runs[peer], []
        for at in range(first, first + count):
            run = runs[at % len(runs)]
            start = self._now()
            run()
            seconds.append(self._now() - start)
        return seconds

    def drop(self, peer: int) -> None:
        self._runs.pop(peer, None)
        self._peers[peer].release()
        self._peers[peer].drop()
        gc.collect()


def main() -> None:
    name, threads, clock = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    try:
        peers = importlib.import_module(f"peers.{name}_peer").load(threads)
    except Missing as missing:
        answer(missing=str(missing))
        return
    answer(value=[(peer.name, peer.formats) for peer in peers])
    worker = Worker(peers, threads, clock)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(value=getattr(worker, request.pop("do"))(**request))
        except Missing as missing:
            answer(missing=str(missing))
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            answer(missing=f"{name}: {type(error).__name__}: {first[:200]}")


if __name__ == "__main__":
    main()
