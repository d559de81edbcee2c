"""ggml's C functions, through ctypes, from the shared libraries that Python packages ship.

ik_llama.cpp's ggml is an older one with functions of its own.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path
from typing import Any

from .layer import Missing

TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "q2_k": 10,
    "q3_k": 11,
    "q4_k": 12,
    "q5_k": 13,
    "q6_k": 14,
    "iq2_xxs": 16,
    "iq2_xs": 17,
    "iq3_xxs": 18,
    "iq1_s": 19,
    "iq4_nl": 20,
    "iq3_s": 21,
    "iq2_s": 22,
    "iq4_xs": 23,
    "iq1_m": 29,
    "bf16": 30,
    "mxfp4": 39,
}
"""enum ggml_type, by the names of GGUF."""
WITH_IMPORTANCE = {TYPES[name] for name in ("iq2_xxs", "iq2_xs", "iq1_s")}
"""What ggml rounds with an importance matrix only; without one it ends the process."""
F32, I32 = 0, 26
USAGE_WEIGHTS = 1

_P, _I, _L, _S = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t
_BOTH = {
    "ggml_tensor_overhead": (_S, []),
    "ggml_graph_overhead": (_S, []),
    "ggml_free": (None, [_P]),
    "ggml_new_tensor_3d": (_P, [_P, _I, _L, _L, _L]),
    "ggml_new_tensor_2d": (_P, [_P, _I, _L, _L]),
    "ggml_nbytes": (_S, [_P]),
    "ggml_row_size": (_S, [_I, _L]),
    "ggml_mul_mat_id": (_P, [_P, _P, _P, _P]),
    "ggml_mul": (_P, [_P, _P, _P]),
    "ggml_add": (_P, [_P, _P, _P]),
    "ggml_view_2d": (_P, [_P, _P, _L, _L, _S, _S]),
    "ggml_set_output": (None, [_P]),
    "ggml_new_graph": (_P, [_P]),
    "ggml_build_forward_expand": (None, [_P, _P]),
    "ggml_quantize_chunk": (_S, [_I, _P, _P, _L, _L, _L, _P, _P]),
    "ggml_gallocr_new": (_P, [_P]),
    "ggml_gallocr_alloc_graph": (ctypes.c_bool, [_P, _P]),
    "ggml_gallocr_free": (None, [_P]),
    "ggml_backend_cpu_buffer_type": (_P, []),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_P, [_P, _P]),
    "ggml_backend_buffer_set_usage": (None, [_P, _I]),
    "ggml_backend_buffer_free": (None, [_P]),
    "ggml_backend_tensor_set": (None, [_P, _P, _S, _S]),
    "ggml_backend_tensor_get": (None, [_P, _P, _S, _S]),
    "ggml_backend_graph_compute": (_I, [_P, _P]),
    "ggml_backend_cpu_init": (_P, []),
    "ggml_backend_cpu_set_n_threads": (None, [_P, _I]),
}
_LLAMA = {
    "ggml_swiglu_split": (_P, [_P, _P, _P]),
    "ggml_backend_cpu_reg": (_P, []),
    "ggml_backend_reg_dev_get": (_P, [_P, _S]),
    "ggml_backend_reg_get_proc_address": (_P, [_P, ctypes.c_char_p]),
}
_IK = {
    "ggml_moe_up_gate": (_P, [_P, _P, _P, _P, _P, _I]),
    "ggml_mul_multi_add": (_P, [_P, _P, _P]),
    "iqk_repack_tensor": (None, [_P]),
}


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", _S), ("mem_buffer", _P), ("no_alloc", ctypes.c_bool))


class Ggml:
    """The functions under their own names; `context` and `extra_buffer_types` beside them."""

    def __init__(self, name: str, libraries: list[Path], functions: dict[str, Any]) -> None:
        self.quantized: tuple[Any, int, list[Any]] | None = None  # what was rounded last, of what
        try:
            loaded = [ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL) for path in libraries]
        except OSError as error:
            raise Missing(f"{name}: {error}") from None
        everything = {**_BOTH, **functions, "ggml_init": (_P, [_InitParams])}
        for function_name, (result, arguments) in everything.items():
            for library in loaded:
                function = getattr(library, function_name, None)
                if function is not None:
                    function.restype, function.argtypes = result, arguments
                    setattr(self, function_name, function)
                    break
            else:
                raise Missing(f"{name}: {libraries[0]} has no {function_name}")

    def context(self, tensors: int) -> int:
        """For the descriptions of so many tensors and a graph; their data lies elsewhere."""
        size = self.ggml_tensor_overhead() * tensors + self.ggml_graph_overhead()
        return self.ggml_init(_InitParams(size, None, True))

    def extra_buffer_types(self) -> list[int]:
        """What llama.cpp tries before plain memory: layouts that its fast kernels want."""
        registry = self.ggml_backend_cpu_reg()
        name = b"ggml_backend_dev_get_extra_bufts"
        address = self.ggml_backend_reg_get_proc_address(registry, name)
        if not address:
            return []
        function = ctypes.CFUNCTYPE(ctypes.POINTER(_P), _P)(address)
        found, i = function(self.ggml_backend_reg_dev_get(registry, 0)), 0
        types = []
        while found and found[i]:
            types.append(found[i])
            i += 1
        return types


def find_llama() -> Ggml:
    """GGML_LIBRARY_DIR's, else llama-cpp-python's. Raises Missing."""
    folder = _folder("ggml", "GGML_LIBRARY_DIR", "llama_cpp", "llama-cpp-python")
    return Ggml("ggml", [folder / "libggml-base.so", folder / "libggml-cpu.so"], _LLAMA)


def find_ik() -> Ggml:
    """IK_LIBRARY_DIR's, else ik-llama-cpp-python's. Raises Missing."""
    folder = _folder("ik", "IK_LIBRARY_DIR", "ik_llama_cpp", "ik-llama-cpp-python")
    return Ggml("ik", [folder / "libggml.so"], _IK)


def _folder(name: str, variable: str, package: str, distribution: str) -> Path:
    folder = os.environ.get(variable)
    if folder is not None:
        return Path(folder)
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise Missing(f"{name}: not installed (pip install {distribution}, or {variable}=…)")
    return Path(spec.submodule_search_locations[0]) / "lib"
