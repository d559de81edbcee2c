"""PyTorch: a loop over the experts, and its grouped product."""

from __future__ import annotations

from typing import Any

import numpy as np

from .layer import Float32, Int32, Layer, Missing, Peer, Run

DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


class Weights:
    """gate and up [E, 2F, H] and down [E, H, F] as tensors. Peers over torch share one."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.key: object = None
        self.gate_up: Any = None
        self.down: Any = None

    def pack(self, layer: Layer, format: str) -> None:
        if self.key == (id(layer), format):
            return
        self.drop()
        shape, torch = layer.shape, self.torch
        dtype = getattr(torch, DTYPES[format])
        self.gate_up = torch.empty(shape.experts, 2 * shape.inter, shape.hidden, dtype=dtype)
        self.down = torch.empty(shape.experts, shape.hidden, shape.inter, dtype=dtype)
        for expert, (gate_up, down) in layer.packed(self._rounded):
            self.gate_up[expert], self.down[expert] = gate_up, down
        self.key = (id(layer), format)

    def _rounded(self, gate: Float32, up: Float32, down: Float32) -> tuple[Any, Any]:
        torch, dtype = self.torch, self.down.dtype
        gate_up = torch.from_numpy(np.concatenate([gate, up]))
        return gate_up.to(dtype), torch.from_numpy(down).to(dtype)

    def drop(self) -> None:
        self.key = self.gate_up = self.down = None

    def inputs(self, x: Float32, experts: Int32, weights: Float32) -> tuple[Any, Any, Any]:
        torch = self.torch
        return (
            torch.from_numpy(x).to(self.down.dtype),
            torch.from_numpy(experts.astype(np.int64)),
            torch.from_numpy(weights).to(self.down.dtype),
        )


class TorchLoop(Peer):
    """Rows of an expert, two dense products, and back: what is written by hand most often."""

    name = "torch loop"
    formats = ("f32", "bf16", "f16")

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def pack(self, layer: Layer, format: str) -> None:
        self._weights.pack(layer, format)

    def drop(self) -> None:
        self._weights.drop()

    def values(self, out: Any) -> Float32:
        return np.asarray(out.float().numpy())

    def prepare(self, x: Float32, experts: Int32, weights: Float32) -> Run:
        torch, store = self._weights.torch, self._weights
        functional = torch.nn.functional
        rows, ids, scales = store.inputs(x, experts, weights)

        def run() -> Any:
            with torch.inference_mode():
                out = torch.zeros_like(rows)
                for e in torch.unique(ids).tolist():
                    token, slot = torch.where(ids == e)
                    gate, up = functional.linear(rows[token], store.gate_up[e]).chunk(2, -1)
                    y = functional.linear(functional.silu(gate) * up, store.down[e])
                    out.index_add_(0, token, y * scales[token, slot, None])
                return out

        return run


class TorchGrouped(TorchLoop):
    """`torch.nn.functional.grouped_mm` over rows that are sorted by expert."""

    name = "torch grouped_mm"
    formats = ("f32", "bf16")

    def prepare(self, x: Float32, experts: Int32, weights: Float32) -> Run:
        torch, store = self._weights.torch, self._weights
        functional = torch.nn.functional
        rows, ids, scales = store.inputs(x, experts, weights)
        count, top_k = store.down.shape[0], ids.shape[1]

        def run() -> Any:
            with torch.inference_mode():
                flat = ids.flatten()
                order = torch.argsort(flat, stable=True)
                ends = torch.cumsum(torch.bincount(flat, minlength=count), 0).to(torch.int32)
                gate_up = functional.grouped_mm(
                    rows[order // top_k], store.gate_up.transpose(1, 2), offs=ends
                )
                gate, up = gate_up.chunk(2, -1)
                y = functional.grouped_mm(
                    functional.silu(gate) * up, store.down.transpose(1, 2), offs=ends
                )
                y = y * scales.flatten()[order, None]
                return torch.zeros_like(rows).index_add_(0, order // top_k, y)

        return run


def load(threads: int) -> list[Peer]:
    try:
        import torch
    except ImportError:
        raise Missing("torch: not installed (pip install torch)") from None
    torch.set_num_threads(threads)
    weights = Weights(torch)
    peers: list[Peer] = [TorchLoop(weights)]
    if hasattr(torch.nn.functional, "grouped_mm"):
        peers.append(TorchGrouped(weights))
    return peers
