"""moekit: the loop that `generate` runs, with a clock around each pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import moekit as mk
from moekit.ops.limits import LimitProbe


class Moekit:
    name = "moekit"

    def __init__(self, path: Path, probe: LimitProbe, **options: Any) -> None:
        self.model = mk.load(path, progress=False, **options)
        self._now = probe.now
        self._tokens: list[int] = []
        self._cache = self.model.new_cache()

    def prompt(self, ids: list[int]) -> float:
        self._tokens = []
        self._cache = self.model.new_cache()
        return self._step(np.array(ids, np.int32))

    def decode(self, count: int) -> list[float]:
        return [self._step(np.array(self._tokens[-1:], np.int32)) for _ in range(count)]

    def _step(self, ids: np.ndarray[Any, np.dtype[np.int32]]) -> float:
        start = self._now()
        logits = self.model.logits([ids], self._cache, last=True)
        self._tokens.append(int(logits[0].argmax()))
        return self._now() - start

    def chosen(self) -> list[int]:
        return self._tokens

    def close(self) -> None:
        del self.model, self._cache

    def bytes_per_token(self, context: int) -> float:
        """What one token of a sequence of `context` tokens reads: weights and the cache."""
        total = float(self.model.head.weight.nbytes)
        for layer in self.model.layers:
            share = 1.0
            if layer.moe is not None and layer.moe.gate is not None:
                share = layer.moe.gate.k / layer.moe.experts.count
            for _, kind, weight in layer.weights():
                total += weight.nbytes * (share if kind == "experts" else 1.0)
        held = self._cache.sequences[0]
        return total + context * sum(
            rows[0].nbytes for n in range(len(self.model.layers)) for rows in held.view(n)
        )
