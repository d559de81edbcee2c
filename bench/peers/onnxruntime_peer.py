"""ONNX Runtime's contributed operators MoE (f32) and QMoE (int8 per row, int4 in groups of 128)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .layer import Float32, Int32, Layer, Missing, Peer, Run

_GROUP = 128
_BITS = {"int8": 8, "int4": 4}


class OnnxRuntime(Peer):
    """Gate and up are one matrix with alternating rows, as the CPU kernels want it.

    QMoE takes accuracy level 4, int8 activations, which is its fast path.
    """

    name = "onnxruntime"
    formats = ("f32", "int8", "int4")

    def __init__(self, ort: Any, onnx: Any, threads: int) -> None:
        self._ort, self._onnx, self._threads = ort, onnx, threads
        self._session: Any = None
        self._weights: dict[str, np.ndarray] = {}

    def pack(self, layer: Layer, format: str) -> None:
        self.drop()
        shape = layer.shape
        names = ("fc1", "fc2") if format == "f32" else ("fc1", "fc1_scales", "fc2", "fc2_scales")
        self._weights = {}
        for expert, forms in layer.packed(_packer(format)):
            for name, form in zip(names, forms, strict=True):
                if expert == 0:
                    self._weights[name] = np.empty((shape.experts, *form.shape), form.dtype)
                self._weights[name][expert] = form
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        values = [self._ort.OrtValue.ortvalue_from_numpy(a) for a in self._weights.values()]
        options.add_external_initializers(list(self._weights), values)
        try:
            self._session = self._ort.InferenceSession(
                self._model(layer, format), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no class in common
            first = str(error).splitlines()[0]
            raise Missing(f"onnxruntime {format}: {first}") from None

    def _model(self, layer: Layer, format: str) -> bytes:
        helper, proto = self._onnx.helper, self._onnx.TensorProto
        shape = layer.shape
        if format == "f32":
            inputs = ["x", "router", "fc1", "", "fc2"]
            kind: dict[str, Any] = {}
        else:
            inputs = ["x", "router", "fc1", "fc1_scales", "", "fc2", "fc2_scales"]
            kind = {"expert_weight_bits": _BITS[format], "accuracy_level": 4}
            if format == "int4":
                kind["block_size"] = _GROUP
        node = helper.make_node(
            "MoE" if format == "f32" else "QMoE",
            inputs,
            ["y"],
            domain="com.microsoft",
            k=shape.top_k,
            activation_type="swiglu",
            activation_alpha=1.0,
            activation_beta=0.0,
            swiglu_fusion=1,
            normalize_routing_weights=1,
            **kind,
        )
        initializers = []
        for name, array in self._weights.items():
            tensor = proto(name=name, dims=array.shape, data_location=proto.EXTERNAL)
            tensor.data_type = proto.UINT8 if array.dtype == np.uint8 else proto.FLOAT
            tensor.external_data.add(key="location", value="memory")
            initializers.append(tensor)
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            [node],
            "moe",
            [
                info("x", proto.FLOAT, ["T", shape.hidden]),
                info("router", proto.FLOAT, ["T", shape.experts]),
            ],
            [info("y", proto.FLOAT, ["T", shape.hidden])],
            initializers,
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return bytes(model.SerializeToString())

    def prepare(self, x: Float32, experts: Int32, weights: Float32) -> Run:
        session = self._session
        count = session.get_inputs()[1].shape[1]
        if not np.allclose(weights, 1 / experts.shape[1]):
            raise Missing("onnxruntime: weights come from its own softmax; 1/K is required here")
        # The operator routes by itself: equal logits for the chosen, far lower ones for the rest.
        router = np.full((len(x), count), -40.0, np.float32)
        np.put_along_axis(router, experts.astype(np.int64), 0.0, axis=1)
        feeds = {"x": x, "router": router}
        return lambda: np.asarray(session.run(None, feeds)[0])

    def drop(self) -> None:
        self._session, self._weights = None, {}


def _packer(format: str) -> Callable[[Float32, Float32, Float32], list[np.ndarray]]:
    def pack(gate: Float32, up: Float32, down: Float32) -> list[np.ndarray]:
        fc1 = np.stack([gate, up], axis=1).reshape(2 * len(gate), -1)
        if format == "f32":
            return [fc1, down]
        return [*_quantized(fc1, format), *_quantized(down, format)]

    return pack


def _quantized(values: Float32, format: str) -> tuple[np.ndarray, Float32]:
    """Symmetric integers with the zero at half of their range, and the scales."""
    rows, cols = values.shape
    group = cols if format == "int8" else _GROUP
    half = 1 << (_BITS[format] - 1)
    blocks = values.reshape(rows, cols // group, group)
    scales = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(half - 1)
    integers = np.clip(np.rint(blocks / scales), -half, half - 1) + half
    integers = integers.astype(np.uint8).reshape(rows, cols)
    if format == "int8":
        return integers, scales.reshape(rows)
    return integers[:, 0::2] | (integers[:, 1::2] << 4), scales.reshape(rows, cols // group)


def load(threads: int) -> list[Peer]:
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise Missing("onnxruntime: not installed (pip install onnxruntime onnx)") from None
    return [OnnxRuntime(onnxruntime, onnx, threads)]
