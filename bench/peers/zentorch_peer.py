"""zentorch's fused experts, as vLLM calls them on AMD's processors."""

from __future__ import annotations

from typing import Any

import numpy as np

from .layer import Float32, Int32, Layer, Missing, Peer, Run
from .torch_peer import DTYPES, Weights


class Zentorch(Peer):
    """Floats, and int8 per row over bfloat16 rows. It lays weights out anew at their first use."""

    name = "zentorch"
    formats = ("f32", "bf16", "f16", "int8")

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._floats = Weights(torch)
        self._weights: list[Any] = []
        self._dtype: Any = None

    def pack(self, layer: Layer, format: str) -> None:
        self.drop()
        torch, shape = self._torch, layer.shape
        self._dtype = getattr(torch, DTYPES.get(format, "bfloat16"))
        if format in DTYPES:
            self._floats.pack(layer, format)
            self._weights = [self._floats.gate_up, self._floats.down, None, None]
            return
        gate_up = torch.empty(shape.experts, 2 * shape.inter, shape.hidden, dtype=torch.int8)
        down = torch.empty(shape.experts, shape.hidden, shape.inter, dtype=torch.int8)
        scales = [torch.empty(weight.shape[:2]) for weight in (gate_up, down)]
        for expert, forms in layer.packed(self._rounded):
            gate_up[expert], scales[0][expert], down[expert], scales[1][expert] = forms
        self._weights = [gate_up, down, *scales]

    def _rounded(self, gate: Float32, up: Float32, down: Float32) -> list[Any]:
        forms = []
        for values in (np.concatenate([gate, up]), down):
            weight = self._torch.from_numpy(values)
            scale = weight.abs().amax(1, keepdim=True) / 127
            forms += [(weight / scale).round().to(self._torch.int8), scale.squeeze(1)]
        return forms

    def prepare(self, x: Float32, experts: Int32, weights: Float32) -> Run:
        torch, fused = self._torch, self._torch.ops.zentorch.zentorch_fused_moe
        rows = torch.from_numpy(x).to(self._dtype)
        ids, scales = torch.from_numpy(experts), torch.from_numpy(weights)
        gate_up, down, gate_up_scale, down_scale = self._weights

        def run() -> Any:
            out = torch.empty_like(rows)
            fused(
                *(out, rows, gate_up, down, None, None, scales, ids, False, "silu"),
                *(gate_up_scale, down_scale),
            )
            return out

        return run

    def values(self, out: Any) -> Float32:
        return np.asarray(out.float().numpy())

    def drop(self) -> None:
        if self._weights:
            # Its copies are found by address, which other weights may have next.
            self._torch.ops.zentorch.zentorch_flush_moe_weight_cache()
        self._weights = []
        self._floats.drop()


def load(threads: int) -> list[Peer]:
    try:
        import torch
        import zentorch  # noqa: F401
    except (ImportError, OSError) as error:
        first = str(error).splitlines()[0]
        raise Missing(f"zentorch: {first} (pip install zentorch torch)") from None
    torch.set_num_threads(threads)
    return [Zentorch(torch)]
