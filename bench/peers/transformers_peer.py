"""transformers' own experts modules, with each implementation that it registers for a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from .layer import Float32, Int32, Layer, Missing, Peer, Run
from .torch_peer import Weights

_LARGEST_COPY = 2 << 30


class Transformers(Peer):
    formats = ("f32", "bf16")

    def __init__(self, weights: Weights, module: Any, implementation: str) -> None:
        self.name = f"transformers {implementation}"
        self._weights = weights
        self._module = module
        self._implementation = implementation
        self._experts: Any = None

    def pack(self, layer: Layer, format: str) -> None:
        torch, shape = self._weights.torch, layer.shape
        self._weights.pack(layer, format)
        config = self._module.MixtralConfig(
            hidden_size=shape.hidden,
            intermediate_size=shape.inter,
            num_local_experts=shape.experts,
            num_experts_per_tok=shape.top_k,
        )
        config._experts_implementation = self._implementation
        with torch.device("meta"):
            self._experts = self._module.MixtralExperts(config)
        parameter = torch.nn.Parameter
        self._experts.gate_up_proj = parameter(self._weights.gate_up, requires_grad=False)
        self._experts.down_proj = parameter(self._weights.down, requires_grad=False)

    def drop(self) -> None:
        self._experts = None
        self._weights.drop()

    def values(self, out: Any) -> Float32:
        return np.asarray(out.float().numpy())

    def prepare(self, x: Float32, experts: Int32, weights: Float32) -> Run:
        torch, module = self._weights.torch, self._experts
        rows, ids, scales = self._weights.inputs(x, experts, weights)
        if self._implementation == "batched_mm":
            gathered = ids.numel() * (
                self._weights.gate_up[0].nbytes + self._weights.down[0].nbytes
            )
            if gathered > _LARGEST_COPY:
                gib = gathered / 2**30
                raise Missing(f"{self.name}: would copy {gib:.0f} GiB of weights, a set per slot")

        def run() -> Any:
            with torch.inference_mode():
                return module(rows, ids, scales)

        return run


def load(threads: int) -> list[Peer]:
    try:
        import torch
        from transformers.models.mixtral import modeling_mixtral
    except ImportError:
        raise Missing("transformers: not installed (pip install transformers torch)") from None
    torch.set_num_threads(threads)
    weights = Weights(torch)
    return [
        Transformers(weights, modeling_mixtral, implementation)
        for implementation in ("eager", "batched_mm", "grouped_mm")
    ]
