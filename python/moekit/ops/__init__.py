"""The kernels, each usable alone: route → plan → permute → grouped_matmul → combine, and moe_ffn
fused. Functions take what offers DLPack or the buffer protocol and return NumPy arrays."""

from moekit.ops.attention import attention, mla_attention
from moekit.ops.experts import Experts, moe_ffn
from moekit.ops.weights import PackedWeight, format_names, grouped_matmul, matmul, pack

__all__ = [
    "Experts",
    "PackedWeight",
    "attention",
    "format_names",
    "grouped_matmul",
    "matmul",
    "mla_attention",
    "moe_ffn",
    "pack",
]
