"""llama.cpp's kernels: the graph of its build_moe_ffn, after routing, on ggml's CPU backend.

`ggml` keeps the weights as a file has them; `ggml repack` is llama.cpp's default, which lays some
types out anew while it loads. Types that are not laid out anew are skipped there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from .ggml_library import F32, I32, TYPES, USAGE_WEIGHTS, WITH_IMPORTANCE, Ggml, find_llama
from .layer import Float32, Int32, Layer, Missing, Peer, Run

# ggml-cpu/repack.cpp, ggml_repack_get_optimal_repack_type, on x86.
_REPACKED = ("q4_0", "q4_k", "q2_k", "iq4_nl", "mxfp4")


class GgmlPeer(Peer):
    """Weights in the memory of `buffer_type`; the graph and its threads are ggml's."""

    def __init__(
        self, name: str, ggml: Ggml, threads: int, formats: Iterable[str], buffer_type: int
    ) -> None:
        self.name = name
        self.formats = tuple(formats)
        self._ggml = ggml
        self._threads = threads
        self._buffer_type = buffer_type
        self._backend = ggml.ggml_backend_cpu_init()
        ggml.ggml_backend_cpu_set_n_threads(self._backend, threads)
        self._weights: tuple[int, int, int] | None = None
        # What frees the weights, and what frees the graphs, which point at them.
        self._of_weights: list[Callable[[], None]] = []
        self._of_runs: list[Callable[[], None]] = []

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
        self._of_weights += [
            lambda: ggml.ggml_free(context),
            lambda: ggml.ggml_backend_buffer_free(buffer),
        ]
        ggml.ggml_backend_buffer_set_usage(buffer, USAGE_WEIGHTS)
        whole: list[np.ndarray] = [
            np.empty((shape.experts, rows * ggml.ggml_row_size(kind, cols)), np.uint8)
            for cols, rows in sizes
        ]
        for expert, forms in self._quantized(layer, kind):
            for which in range(3):
                whole[which][expert] = forms[which]
        for tensor, data in zip(tensors, whole, strict=True):
            # Other layouts are made from whole tensors only.
            ggml.ggml_backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)
            self.lay_out(tensor)
        self._weights = (tensors[0], tensors[1], tensors[2])

    def _quantized(self, layer: Layer, kind: int) -> list[tuple[int, list[np.ndarray]]]:
        """Every expert's matrices; the peers of one library round them once."""
        ggml = self._ggml
        if ggml.quantized is None or ggml.quantized[:2] != (layer, kind):
            forms = list(layer.packed(self._quantizer(kind), self._threads))
            ggml.quantized = layer, kind, forms
        return list(ggml.quantized[2])

    def lay_out(self, tensor: int) -> None:
        """What a program does with a tensor after loading it."""

    def _quantizer(self, kind: int) -> Callable[..., list[np.ndarray]]:
        ggml = self._ggml

        def quantize(*matrices: Float32) -> list[np.ndarray]:
            forms = []
            for matrix in matrices:
                values = np.ascontiguousarray(matrix)
                rows, cols = values.shape
                form = np.empty(rows * ggml.ggml_row_size(kind, cols), np.uint8)
                alike = np.ones(cols, np.float32)  # every column's importance
                needed = alike.ctypes.data if kind in WITH_IMPORTANCE else None
                source, to = values.ctypes.data, form.ctypes.data
                ggml.ggml_quantize_chunk(kind, source, to, 0, rows, cols, needed, None)
                forms.append(form)
            return forms

        return quantize

    def release(self) -> None:
        for free in reversed(self._of_runs):
            free()
        self._of_runs = []

    def drop(self) -> None:
        self.release()
        for free in reversed(self._of_weights):
            free()
        self._of_weights, self._weights = [], None

    def prepare(self, x: Float32, experts: Int32, weights: Float32) -> Run:
        assert self._weights is not None
        ggml = self._ggml
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
        out = self.graph(context, rows, ids, scales, (tokens, hidden, top_k))
        ggml.ggml_set_output(out)
        graph = ggml.ggml_new_graph(context)
        ggml.ggml_build_forward_expand(graph, out)
        allocator = ggml.ggml_gallocr_new(plain)
        self._of_runs += [
            lambda: ggml.ggml_backend_buffer_free(buffer),
            lambda: ggml.ggml_free(inputs),
            lambda: ggml.ggml_free(context),
            lambda: ggml.ggml_gallocr_free(allocator),
        ]
        if not ggml.ggml_gallocr_alloc_graph(allocator, graph):
            raise Missing(f"{self.name}: no memory for {tokens} tokens")

        def run() -> Float32:
            status = ggml.ggml_backend_graph_compute(self._backend, graph)
            if status != 0:
                raise RuntimeError(f"{self.name}: ggml_backend_graph_compute returned {status}")
            result = np.empty((tokens, hidden), np.float32)
            ggml.ggml_backend_tensor_get(out, result.ctypes.data, 0, result.nbytes)
            return result

        return run

    def graph(
        self, context: int, rows: int, ids: int, scales: int, sizes: tuple[int, int, int]
    ) -> int:
        assert self._weights is not None
        ggml, (gate, up, down) = self._ggml, self._weights
        tokens, hidden, top_k = sizes
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
        return out


def load(threads: int) -> list[Peer]:
    ggml = find_llama()
    plain = ggml.ggml_backend_cpu_buffer_type()
    peers: list[Peer] = [GgmlPeer("ggml", ggml, threads, TYPES, plain)]
    layouts = ggml.extra_buffer_types()
    if layouts:  # else built without; nothing to compare with
        peers.append(GgmlPeer("ggml repack", ggml, threads, _REPACKED, layouts[-1]))
    return peers
