"""transformers on the same directory, under each of its own experts implementations."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

from moekit.ops.limits import LimitProbe

EXPERTS = ("eager", "batched_mm", "grouped_mm")


class Transformers:
    """One model in memory, all implementations take turns on it."""

    def __init__(self, path: Path, threads: int, missing: type[Exception]) -> None:
        if importlib.util.find_spec("transformers") is None:
            raise missing("transformers; `pip install transformers torch`")
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()

    def contenders(self, probe: LimitProbe) -> list[Implementation]:
        return [Implementation(self, name, probe) for name in EXPERTS]


class Implementation:
    """A contender."""

    def __init__(self, shared: Transformers, experts: str, probe: LimitProbe) -> None:
        self.name = f"transformers {experts}"
        self._shared = shared
        self._experts = experts
        self._now = probe.now
        self._cache: Any = None

    def prompt(self, ids: list[int]) -> float:
        from transformers import DynamicCache

        self._cache = DynamicCache()
        if self._experts != "batched_mm":
            return self._step(ids, self._experts)
        # It copies the weights of every slot, 50 GB in a layer for 512 tokens: another one reads
        # the prompt, and it is as if it never came to an end.
        self._step(ids, "grouped_mm")
        return math.inf

    def decode(self, ids: list[int]) -> list[float]:
        return [self._step([token], self._experts) for token in ids]

    def _step(self, ids: list[int], experts: str) -> float:
        torch, model = self._shared.torch, self._shared.model
        model.set_experts_implementation(experts)
        with torch.inference_mode():
            start = self._now()
            out = model(
                input_ids=torch.tensor([ids]),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
            int(out.logits[0, -1].argmax())
            return self._now() - start

    def close(self) -> None:
        self._cache = None
