"""llama.cpp's kernels: the graph of its build_moe_ffn, after routing, on ggml's CPU backend.

`ggml` keeps the weights as a file has them; `ggml repack` is llama.cpp's default, which lays some
types out anew while it loads. Types that are not laid out anew are skipped there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from .ggml_library import F32, I32, TYPES, USAGE_WEIGHTS, WITH_IMPORTANCE, Ggml, find
from .layer import Float32, Int32, Layer, Missing, Peer, Run

# ggml-cpu/repack.cpp, ggml_repack_get_optimal_repack_type, on x86.
_REPACKED = ("q4_0", "q4_k", "q2_k", "iq4_nl", "mxfp4")


class GgmlPeer:
    def __init__(self, ggml: Ggml, threads: int, repack: bool) -> None:
        self.name = "ggml repack" if repack else "ggml"
        self.formats = _REPACKED if repack else tuple(TYPES)
        self._ggml = ggml
        self._threads = threads
        self._buffer_type = ggml.ggml_backend_cpu_buffer_type()
        if repack:
            types = ggml.extra_buffer_types()
            if not types:
                raise Missing("ggml repack: this build has no other layouts")
            self._buffer_type = types[-1]
        self._backend = ggml.ggml_backend_cpu_init()
        ggml.ggml_backend_cpu_set_n_threads(self._backend, threads)
        self._owned: list[Callable[[], None]] = []
        self._weights: tuple[int, int, int] | None = None

    def pack(self, layer: Layer, format: str) -> None:
        self.drop()
        ggml, shape, kind = self._ggml, layer.shape, TYPES[format]
        context = ggml.context(3)
        sizes = (
            (shape.hidden, shape.inter),
            (shape.hidden, shape.inter),
            (shape.inter, shape.hidden),
        )
        tensors = [ggml.ggml_new_tensor_3d(context, kind, *size, shape.experts) for size in sizes]
        buffer = ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, self._buffer_type)
        if not buffer:
            ggml.ggml_free(context)
            raise Missing(f"{self.name}: no memory for {format}")
        ggml.ggml_backend_buffer_set_usage(buffer, USAGE_WEIGHTS)
        for which, (tensor, (cols, rows)) in enumerate(zip(tensors, sizes, strict=True)):
            expert_bytes = ggml.ggml_row_size(kind, cols) * rows
            data = np.empty(expert_bytes * shape.experts, np.uint8)
            quantize = _quantizer(ggml, layer, which, kind, data, expert_bytes)
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(quantize, range(shape.experts)))
            # Other layouts are made from whole tensors only.
            ggml.ggml_backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)
        self._weights = (tensors[0], tensors[1], tensors[2])
        self._owned += [
            lambda: ggml.ggml_backend_buffer_free(buffer),
            lambda: ggml.ggml_free(context),
        ]

    def drop(self) -> None:
        # Graphs point at the weights, so they go first.
        for free in reversed(self._owned):
            free()
        self._owned, self._weights = [], None

    def prepare(self, x: Float32, experts: Int32, weights: Float32) -> Run:
        assert self._weights is not None
        ggml, (gate, up, down) = self._ggml, self._weights
        (tokens, hidden), top_k = x.shape, experts.shape[1]

        inputs = ggml.context(3)
        rows = ggml.ggml_new_tensor_3d(inputs, F32, hidden, 1, tokens)
        ids = ggml.ggml_new_tensor_2d(inputs, I32, top_k, tokens)
        scales = ggml.ggml_new_tensor_3d(inputs, F32, 1, top_k, tokens)
        plain = ggml.ggml_backend_cpu_buffer_type()
        buffer = ggml.ggml_backend_alloc_ctx_tensors_from_buft(inputs, plain)
        for tensor, array in ((rows, x), (ids, experts), (scales, weights)):
            data = np.ascontiguousarray(array)
            ggml.ggml_backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)

        context = ggml.context(16 + 2 * top_k)
        y_up = ggml.ggml_mul_mat_id(context, up, rows, ids)
        y_gate = ggml.ggml_mul_mat_id(context, gate, rows, ids)
        activated = ggml.ggml_swiglu_split(context, y_gate, y_up)
        y = ggml.ggml_mul_mat_id(context, down, activated, ids)
        y = ggml.ggml_mul(context, y, scales)
        slots = [
            ggml.ggml_view_2d(context, y, hidden, tokens, 4 * hidden * top_k, 4 * hidden * slot)
            for slot in range(top_k)
        ]
        out = slots[0]
        for slot in slots[1:]:
            out = ggml.ggml_add(context, out, slot)
        ggml.ggml_set_output(out)
        graph = ggml.ggml_new_graph(context)
        ggml.ggml_build_forward_expand(graph, out)
        allocator = ggml.ggml_gallocr_new(plain)
        if not ggml.ggml_gallocr_alloc_graph(allocator, graph):
            raise Missing(f"{self.name}: no memory for {tokens} tokens")
        self._owned += [
            lambda: ggml.ggml_free(inputs),
            lambda: ggml.ggml_backend_buffer_free(buffer),
            lambda: ggml.ggml_free(context),
            lambda: ggml.ggml_gallocr_free(allocator),
        ]

        def run() -> Float32:
            status = ggml.ggml_backend_graph_compute(self._backend, graph)
            if status != 0:
                raise RuntimeError(f"{self.name}: ggml_backend_graph_compute returned {status}")
            result = np.empty((tokens, hidden), np.float32)
            ggml.ggml_backend_tensor_get(out, result.ctypes.data, 0, result.nbytes)
            return result

        return run


def _quantizer(
    ggml: Ggml, layer: Layer, which: int, kind: int, data: np.ndarray, expert_bytes: int
) -> Callable[[int], None]:
    def quantize(expert: int) -> None:
        values = np.ascontiguousarray(layer.expert(expert)[which])
        to = data.ctypes.data + expert * expert_bytes
        rows, cols = values.shape
        alike = np.ones(cols, np.float32)  # every column's importance
        needed = ctypes.c_void_p(alike.ctypes.data) if kind in WITH_IMPORTANCE else None
        ggml.ggml_quantize_chunk(
            kind, ctypes.c_void_p(values.ctypes.data), ctypes.c_void_p(to), 0, rows, cols, needed
        )

    return quantize


def load(threads: int) -> list[Peer]:
    ggml = find()
    peers: list[Peer] = [GgmlPeer(ggml, threads, repack=False)]
    with suppress(Missing):  # built without; nothing to compare with
        peers.append(GgmlPeer(ggml, threads, repack=True))
    return peers
