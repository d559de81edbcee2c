"""moekit: the passes that `generate` makes, with a clock around each."""

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
        self._cache = self.model.new_cache()

    def prompt(self, ids: list[int]) -> float:
        self._cache = self.model.new_cache()
        return self._step(ids)

    def decode(self, ids: list[int]) -> list[float]:
        return [self._step([token]) for token in ids]

    def _step(self, ids: list[int]) -> float:
        start = self._now()
        logits = self.model.logits([np.array(ids, np.int32)], self._cache, last=True)
        logits[0].argmax()
        return self._now() - start

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
