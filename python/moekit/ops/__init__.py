"""The kernels, each usable alone: route → plan → permute → grouped_matmul → combine, and moe_ffn
fused. Functions take what offers DLPack or the buffer protocol and return NumPy arrays."""

from moekit.ops.arrays import QuantisedRows
from moekit.ops.assignment import Assignment
from moekit.ops.attention import attention, mla_attention
from moekit.ops.capacity import limit_capacity, route_expert_choice
from moekit.ops.dispatch import Plan, combine, permute, plan
from moekit.ops.experts import Experts, moe_ffn
from moekit.ops.limits import MachineLimits, machine_limits
from moekit.ops.machine import config, set_num_threads, show_config
from moekit.ops.recurrence import (
    causal_conv,
    decay_factors,
    gate,
    gated_delta_rule,
    gated_rms_norm,
    linear_attention,
    selective_scan,
    time_step,
    unit_length,
)
from moekit.ops.rope_scaling import rope_frequencies
from moekit.ops.router_rules import route_gshard, route_hash, route_noisy
from moekit.ops.routing import route, route_threshold, weigh
from moekit.ops.rowwise import embed, layer_norm, rms_norm, rope, rope_angles
from moekit.ops.sampling import sample
from moekit.ops.sparse import (
    hyper_connection,
    mix_streams,
    pool_windows,
    select_keys,
    sparse_attention,
)
from moekit.ops.weights import (
    PackedWeight,
    format_names,
    gptq_factor,
    gptq_format_names,
    grouped_matmul,
    matmul,
    matmul_each,
    pack,
    pack_blocks,
    pack_fp8,
    pack_zero_points,
    packed_bytes,
)

__all__ = [
    "Assignment",
    "Experts",
    "MachineLimits",
    "PackedWeight",
    "Plan",
    "QuantisedRows",
    "attention",
    "causal_conv",
    "combine",
    "config",
    "decay_factors",
    "embed",
    "format_names",
    "gate",
    "gated_delta_rule",
    "gated_rms_norm",
    "gptq_factor",
    "gptq_format_names",
    "grouped_matmul",
    "hyper_connection",
    "layer_norm",
    "limit_capacity",
    "linear_attention",
    "machine_limits",
    "matmul",
    "matmul_each",
    "mix_streams",
    "mla_attention",
    "moe_ffn",
    "pack",
    "pack_blocks",
    "pack_fp8",
    "pack_zero_points",
    "packed_bytes",
    "permute",
    "plan",
    "pool_windows",
    "rms_norm",
    "rope",
    "rope_angles",
    "rope_frequencies",
    "route",
    "route_expert_choice",
    "route_gshard",
    "route_hash",
    "route_noisy",
    "route_threshold",
    "sample",
    "select_keys",
    "selective_scan",
    "set_num_threads",
    "show_config",
    "sparse_attention",
    "time_step",
    "unit_length",
    "weigh",
]
