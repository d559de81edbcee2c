"""ggml's C functions, through ctypes, from the shared libraries that llama-cpp-python ships."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path

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
_BASE = {
    "ggml_tensor_overhead": (_S, []),
    "ggml_graph_overhead": (_S, []),
    "ggml_free": (None, [_P]),
    "ggml_new_tensor_3d": (_P, [_P, _I, _L, _L, _L]),
    "ggml_new_tensor_2d": (_P, [_P, _I, _L, _L]),
    "ggml_nbytes": (_S, [_P]),
    "ggml_row_size": (_S, [_I, _L]),
    "ggml_mul_mat_id": (_P, [_P, _P, _P, _P]),
    "ggml_swiglu_split": (_P, [_P, _P, _P]),
    "ggml_mul": (_P, [_P, _P, _P]),
    "ggml_add": (_P, [_P, _P, _P]),
    "ggml_view_2d": (_P, [_P, _P, _L, _L, _S, _S]),
    "ggml_set_output": (None, [_P]),
    "ggml_new_graph": (_P, [_P]),
    "ggml_build_forward_expand": (None, [_P, _P]),
    "ggml_quantize_chunk": (_S, [_I, _P, _P, _L, _L, _L, _P]),
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
    "ggml_backend_reg_dev_get": (_P, [_P, _S]),
    "ggml_backend_reg_get_proc_address": (_P, [_P, ctypes.c_char_p]),
}
_CPU = {
    "ggml_backend_cpu_init": (_P, []),
    "ggml_backend_cpu_reg": (_P, []),
    "ggml_backend_cpu_set_n_threads": (None, [_P, _I]),
}


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", _S), ("mem_buffer", _P), ("no_alloc", ctypes.c_bool))


class Ggml:
    """The functions under their own names; `context` and `repack_buffer_types` beside them."""

    def __init__(self, folder: Path) -> None:
        try:
            base = ctypes.CDLL(str(folder / "libggml-base.so"), ctypes.RTLD_GLOBAL)
            cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), ctypes.RTLD_GLOBAL)
            for library, functions in ((base, _BASE), (cpu, _CPU)):
                for name, (result, arguments) in functions.items():
                    function = getattr(library, name)
                    function.restype, function.argtypes = result, arguments
                    setattr(self, name, function)
            self._init = base.ggml_init
        except (OSError, AttributeError) as error:
            raise Missing(f"ggml: {error}") from None
        self._init.restype, self._init.argtypes = _P, [_InitParams]

    def context(self, tensors: int) -> int:
        """For the descriptions of so many tensors and a graph; their data lies elsewhere."""
        size = self.ggml_tensor_overhead() * tensors + self.ggml_graph_overhead()
        return self._init(_InitParams(size, None, True))

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


def find() -> Ggml:
    """GGML_LIBRARY_DIR's, else llama-cpp-python's. Raises Missing."""
    folder = os.environ.get("GGML_LIBRARY_DIR")
    if folder is None:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or not spec.submodule_search_locations:
            raise Missing(
                "ggml: not installed (pip install llama-cpp-python, or GGML_LIBRARY_DIR=…)"
            )
        folder = str(Path(spec.submodule_search_locations[0]) / "lib")
    return Ggml(Path(folder))
