"""What GGUF's hybrids want otherwise than a Hugging Face checkpoint has it: tensors and keys of
layers that carry states (llama.cpp's converter: conversion/jamba.py, granite.py, nemotron.py,
qwen.py)."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..checkpoint.gguf_architectures import Architecture
from .placing import Array, Tensor, plain_tensor

#: Families of `gguf_hybrids` that are written; the others are read only.
STATES = (
    "jamba",
    "nemotron_h",
    "granitemoehybrid",
    "qwen3_next",
    "qwen3_5_moe_text",
    "kimi_linear",
    "bailing_hybrid",
)
# Kimi Delta Attention: convolutions have four axes, widths keys of their own.
_DELTA = ("kimi_linear", "bailing_hybrid")
_QWEN = ("qwen3_next", "qwen3_5_moe_text")
_DENSE = re.compile(r"block_sparse_moe\.(gate|up|down)_proj\.")
# By which tensor a layer of attention is told, where it is not its queries'.
_ATTENDS = {"kimi_linear": "attn_kv_a_mqa", "bailing_hybrid": "attn_kv_a_mqa"}
# Rates and skips are columns in their files, and the norms of Mamba-2 have a row for each group.
_COLUMNS = ("nemotron_h", "granitemoehybrid", "bailing_hybrid")


def in_file_form(
    row: Architecture, tensors: Mapping[str, Tensor], config: Mapping[str, object]
) -> dict[str, Tensor]:
    """The tensors of a model in the values and shapes of its GGUF file.

    Those of a model that was read from GGUF are so already.
    """
    if row.family not in STATES and not row.holds_one:
        return dict(tensors)
    out: dict[str, Tensor] = {}
    for stored, tensor in tensors.items():
        name = stored
        if row.family == "kimi_linear":  # transformers' name of dense layers
            name = _DENSE.sub(r"mlp.\1_proj.", stored)
        for new, changed in _changed(row, name, tensor, config):
            out[new] = changed
    return out


def _changed(
    row: Architecture, name: str, tensor: Tensor, config: Mapping[str, object]
) -> Iterable[tuple[str, Tensor]]:
    if name.endswith("linear_attn.in_proj_qkvz.weight"):
        base = name.removesuffix("qkvz.weight")
        joint, gates = _rows_apart(tensor.shape[0], config)
        return [
            (f"{base}qkv.weight", replace(tensor, order=joint)),
            (f"{base}z.weight", replace(tensor, order=gates)),
        ]
    values = tensor.parts[0][1].weight
    if row.family in _DELTA and name.endswith(".conv1d.weight"):
        # Transformers has the convolutions of q, k and v in one.
        assert isinstance(values, np.ndarray)
        apart: list[tuple[str, Tensor]] = []
        for part, own in zip("qkv", np.split(values, 3), strict=True):
            new = name.replace(".conv1d.", f".{part}_conv1d.")
            apart += _changed(row, new, plain_tensor(new, own), config)
        return apart
    order = None
    if row.family == "qwen3_5_moe_text" and ".linear_attn." in name:
        order = _tiled(name, tensor.shape, config)
    if not isinstance(values, np.ndarray):
        if order is None:
            return [(name, tensor)]
        if name.endswith("out_proj.weight"):
            return [(name, replace(tensor, columns=order))]
        return [(name, replace(tensor, order=order))]
    values = values if order is None else values[order]
    if name.endswith(".A_log"):
        # A bounded decay has the rate itself.
        values = np.exp(values) if row.family == "bailing_hybrid" else -np.exp(values)
        name = name.removesuffix("_log")
    if name.endswith("conv1d.weight") and values.ndim == 3:
        values = values[:, 0] if row.family not in _DELTA else values[None]
    if row.family in _COLUMNS and name.endswith((".A", ".D")):
        values = values.reshape(-1, 1)
    if row.family in _COLUMNS and name.endswith(("mixer.norm.weight", "mamba.norm.weight")):
        groups = config.get("n_groups") or config.get("mamba_n_groups") or 1
        assert isinstance(groups, int)
        values = values.reshape(groups, -1)
    adds_one = (row.family in _QWEN or row.holds_one) and not config.get("norms_hold_one")
    if adds_one and name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        values = values + np.float32(1)
    return [(name, plain_tensor(name, np.ascontiguousarray(values)))]


def _rows_apart(rows: int, config: Mapping[str, object]) -> tuple[Array, Array]:
    """Rows of q, k, v of all heads, and of z: the checkpoint has them by key head."""
    groups, width = config["linear_num_key_heads"], config["linear_key_head_dim"]
    assert isinstance(groups, int)
    assert isinstance(width, int)
    wide = np.arange(rows).reshape(groups, -1)
    rest = (wide.shape[1] - 2 * width) // 2
    *joint, gates = np.split(wide, [width, 2 * width, 2 * width + rest], axis=1)
    return np.concatenate([part.reshape(-1) for part in joint]), gates.reshape(-1)


def _tiled(
    name: str, shape: tuple[int, ...], config: Mapping[str, object]
) -> npt.NDArray[np.int64] | None:
    """Rows (of `out_proj` columns) with value heads of one key head apart, as ggml repeats keys;
    None where nothing changes. A model that was read from GGUF has them so."""
    keys, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    width = config["linear_key_head_dim"]
    assert isinstance(keys, int)
    assert isinstance(heads, int)
    assert isinstance(width, int)
    if (
        config.get("linear_heads_tiled")
        or heads == keys
        or name.endswith("linear_attn.norm.weight")
    ):
        return None
    joint = name.endswith(("in_proj_qkv.weight", "conv1d.weight"))
    skipped = 2 * keys * width if joint else 0
    rest = shape[1 if name.endswith("out_proj.weight") else 0] - skipped
    values = np.arange(rest).reshape(keys, heads // keys, rest // heads).swapaxes(0, 1)
    return np.concatenate([np.arange(skipped), skipped + values.reshape(-1)])


def state_keys(
    row: Architecture,
    config: Mapping[str, object],
    names: Collection[str],
    keys: Mapping[str, Any],
) -> dict[str, Any]:
    """Keys without the architecture that say what each layer is and how wide its states are.

    ValueError for layers that the architecture's files cannot say.
    """
    layers = range(keys["block_count"])
    found: dict[str, Any] = {}

    def has(n: int, part: str) -> bool:
        return f"{row.prefix}{n}.{part}" in names

    attends = [
        has(n, f"{row.layer_names[_ATTENDS.get(row.family, 'attn_q')]}.weight") for n in layers
    ]
    if row.family in _QWEN:
        period = attends.index(True) + 1 if any(attends) else len(attends) + 1
        if attends != [(n + 1) % period == 0 for n in layers]:
            raise ValueError(
                f"[save] layer_types: layers of attention are {attends}; GGUF's {row.name} has "
                "every n-th, which is required"
            )
        found["full_attention_interval"] = period
        found["ssm.inner_size"] = _product(
            config, "linear_num_value_heads", "linear_value_head_dim"
        )
        if row.family == "qwen3_5_moe_text":
            # Text alone has one position, so it does not matter which pairs are whose.
            third = max(1, keys["rope.dimension_count"] // 6)
            found["rope.dimension_sections"] = np.array([third, third, third, 0], np.int32)
        return found
    if row.family == "kimi_linear":
        section: Any = config.get("linear_attn_config") or {}
        found["kda.head_dim"] = section.get("head_dim") or config.get("linear_head_dim") or 128
        taps = section.get("short_conv_kernel_size") or config.get("linear_conv_kernel_dim") or 4
        found["ssm.conv_kernel"] = taps
        heads = section.get("num_heads") or config.get("linear_num_heads") or 32
        if heads != keys["attention.head_count"]:
            raise ValueError(
                f"[save] linear_num_heads is {heads!r}; GGUF's {row.name} has as many as heads of "
                "attention, which is required"
            )
    if row.family == "bailing_hybrid":
        if keys.get("rope.scaling.type", "none") != "none":
            raise ValueError(
                f"[save] rope_type is {keys['rope.scaling.type']!r}; GGUF's {row.name} leaves the "
                "softmax scale as it is, so default is required"
            )
        found["kda.gate_lower_bound"] = config.get("kda_lower_bound", -5.0)
        found["kda.head_dim"] = config.get("linear_head_dim") or config.get("head_dim") or 128
        found["ssm.conv_kernel"] = config.get("short_conv_kernel_size") or 4
        heads = config.get("linear_num_heads") or keys["attention.head_count"]
        if heads != keys["attention.head_count"]:
            raise ValueError(
                f"[save] linear_num_heads is {heads!r}; GGUF's {row.name} has as many as heads of "
                "attention, which is required"
            )
    heads = keys["attention.head_count_kv"]
    found["attention.head_count_kv"] = np.array([heads * a for a in attends], np.int32)
    if row.family == "nemotron_h":
        experts = [has(n, f"{row.experts}.up_exps") for n in layers]
        dense = [has(n, "mixer.up_proj.weight") for n in layers]
        inner = [
            keys["expert_feed_forward_length"] if e else keys.get("feed_forward_length", 0) * d
            for e, d in zip(experts, dense, strict=True)
        ]
        found["feed_forward_length"] = np.array(inner, np.int32)
        found["attention.layer_norm_epsilon"] = keys["attention.layer_norm_rms_epsilon"]
        found["ssm.inner_size"] = _product(config, "mamba_num_heads", "mamba_head_dim")
        shared = config.get("n_shared_experts")
        found["expert_shared_count"] = shared if isinstance(shared, int) else 1
    elif row.family not in _DELTA:
        found["ssm.inner_size"] = _product(config, "mamba_expand", "hidden_size")
    if row.family == "granitemoehybrid":
        found["rope.scaling.finetuned"] = config.get("position_embedding_type") == "rope"
    return found


def _product(config: Mapping[str, object], *names: str) -> int:
    total = 1
    for name in names:
        value = config.get(name)
        if type(value) is not int:
            raise ValueError(f"[save] {name} is {value!r}; an integer is required")
        total *= value
    return total
