"""kt-kernel, the CPU experts of KTransformers: its compiled module for AMX, without its wrapper.

The calls are those of its Python (kt_kernel/utils/amx.py, experts_base.py), which needs torch for
tensors only. Rows are bfloat16 in and out.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from .layer import Float32, Int32, Layer, Missing, Peer, Run

_BLOCK = 128
_LONGEST = 4096  # tokens in one call
_CLASSES = {
    "bf16": "AMXBF16_MOE",
    "fp8": "AMXFP8_MOE",
    "int8": "AMXInt8_MOE",
    "int4": "AVXVNNI256RawInt4_MOE",  # the one for AMX takes groups of 32 only
    "int4_g32": "AMXInt4_KGroup_MOE",
}


class KtKernel(Peer):
    name = "kt"

    def __init__(self, module: Any, threads: int) -> None:
        self._module = module
        self.formats = tuple(f for f, name in _CLASSES.items() if hasattr(module.moe, name))
        pool = module.WorkerPoolConfig()
        pool.subpool_count = 1
        pool.subpool_numa_map = [0]
        pool.subpool_thread_count = [threads]
        self._cpu = module.CPUInfer(pool)
        self._experts: Any = None

    def pack(self, layer: Layer, format: str) -> None:
        self.drop()
        shape, module = layer.shape, self._module
        if shape.hidden % _BLOCK or shape.inter % _BLOCK:
            raise Missing(f"kt {format}: sizes that are no multiples of {_BLOCK}")
        on_gpu = np.zeros(shape.experts, np.bool_)
        order = np.arange(shape.experts, dtype=np.int64)
        config = module.moe.MOEConfig(
            shape.experts, shape.top_k, shape.hidden, shape.inter, on_gpu.ctypes.data
        )
        config.layer_idx = 0
        config.pool = self._cpu.backend_
        config.max_len = _LONGEST
        group = 32 if format == "int4_g32" else _BLOCK
        pack = {"fp8": _fp8, "int4": _int4, "int4_g32": _int4}.get(format, _bf16)
        made = dict(layer.packed(lambda *matrices: [pack(values, group) for values in matrices]))
        forms = [made[expert] for expert in range(shape.experts)]
        names = ("gate", "up", "down")
        whole = []
        for which, name in enumerate(names):
            if format == "int8":  # rounded by itself, from all experts in a row
                whole.append(np.stack([form[which][0] for form in forms]))
                setattr(config, f"{name}_proj", whole[-1].ctypes.data)
                continue
            codes = [form[which][0].ctypes.data for form in forms]
            scales = [form[which][1].ctypes.data if form[which][1].size else 0 for form in forms]
            setattr(config, f"{name}_projs", [codes])
            setattr(config, f"{name}_scales", [scales])
        if format not in ("bf16", "int8"):
            config.quant_config.bits = 8 if format == "fp8" else 4
            config.quant_config.group_size = group
            config.quant_config.zero_point = False
        experts = getattr(module.moe, _CLASSES[format])(config)
        self._cpu.submit(experts.load_weights_task(order.ctypes.data))
        self._cpu.sync()
        self._experts = experts, on_gpu

    def prepare(self, x: Float32, experts: Int32, weights: Float32) -> Run:
        kernels, _ = self._experts
        rows, ids = _bf16(x)[0], experts.astype(np.int64)
        scales = np.ascontiguousarray(weights)
        out = np.zeros_like(rows)
        count = np.array([len(x)], np.int32)
        task = kernels.forward_task(
            *(count.ctypes.data, ids.shape[1], ids.ctypes.data, scales.ctypes.data),
            *(rows.ctypes.data, out.ctypes.data, False),
        )
        inputs = (count, ids, scales, rows)

        def run() -> Any:
            assert inputs is not None  # they live as long as the run
            self._cpu.submit(task)
            self._cpu.sync()
            return out

        return run

    def values(self, out: Any) -> Float32:
        return (out.astype(np.uint32) << 16).view(np.float32)

    def drop(self) -> None:
        self._experts = None


def _bf16(values: Float32, group: int = 1) -> list[np.ndarray]:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return [rounded.astype(np.uint16), np.empty(0)]


def _fp8(values: Float32, group: int) -> list[np.ndarray]:
    """E4M3 bytes, and a float32 for each square of `group`."""
    rows, cols = values.shape
    blocks = values.reshape(rows // group, group, cols // group, group)
    scale = np.abs(blocks).max(axis=(1, 3), keepdims=True) / np.float32(448)
    size = np.abs(blocks / scale).reshape(rows, cols)
    # Steps of an eighth within each power of two, from 2^-6 on.
    exponent = np.clip(np.floor(np.log2(np.maximum(size, 2.0**-9))), -6, 8)
    step = np.exp2(exponent - 3)
    units = np.rint(size / step)
    codes = np.where(exponent > -6, (exponent + 6) * 8 + units, units)
    codes = np.minimum(codes, 0x7E).astype(np.uint8)
    codes |= np.signbit(values).astype(np.uint8) << 7
    return [codes, scale.reshape(rows // group, cols // group)]


def _int4(values: Float32, group: int) -> list[np.ndarray]:
    """compressed-tensors' pairs of codes above -8 in bytes, a bfloat16 for each group."""
    rows, cols = values.shape
    blocks = values.reshape(rows, cols // group, group)
    scale = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(7)
    codes = (np.clip(np.rint(blocks / scale), -8, 7) + 8).astype(np.uint8).reshape(rows, cols)
    return [codes[:, 0::2] | (codes[:, 1::2] << 4), _bf16(scale.reshape(rows, -1))[0]]


def load(threads: int) -> list[Peer]:
    spec = importlib.util.find_spec("kt_kernel")
    if spec is None or not spec.submodule_search_locations:
        raise Missing("kt: not installed (pip install kt-kernel)")
    with open("/proc/cpuinfo") as lines:
        flags = next((line for line in lines if line.startswith("flags")), "").split()
    if not {"amx_int8", "avx_vnni"} <= set(flags):
        raise Missing("kt: only its kernels for AMX are compared, which this processor lacks")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("_kt_kernel_ext_amx.*.so"))
    if not files:
        raise Missing("kt: this package has no kernels for AMX")
    try:
        found = importlib.util.spec_from_file_location("kt_kernel_ext", files[0])
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    except ImportError as error:
        raise Missing(f"kt: {error}") from None
    return [KtKernel(module, threads)]
