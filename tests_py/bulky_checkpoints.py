"""Checkpoints of some ten megabytes in every stored form, made as fast as they are written.

Values repeat: what they are does not matter where memory is measured.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

import moekit as mk

E, H, F, V, HEADS = 8, 512, 1024, 8000, 8
GROUP = 128
GGUF = ("q4_0", "q4_k", "q6_k", "q8_0", "f16", "bf16")
# What config.json says of each kind that is not plain.
QUANTISED: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False},
    "gptq act-order": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"},
    "mxfp4": {"quant_method": "mxfp4"},
}
DTYPES: dict[str, Any] = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16}
PLAIN = tuple(DTYPES)
KINDS = (*PLAIN, *QUANTISED, "fused", *(f"gguf {name}" for name in GGUF))

Tensors = dict[str, np.ndarray]
_POOL = np.random.default_rng(0).standard_normal(100_003).astype(np.float32) * 0.02
_BYTES = np.random.default_rng(1).integers(0, 256, 100_003, np.uint8)


def _values(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.resize(_POOL.astype(dtype), shape)


def _words(rows: int, cols: int) -> np.ndarray:
    return np.resize(_BYTES, 4 * rows * cols).view(np.int32).reshape(rows, cols)


def _linear(kind: str, name: str, shape: tuple[int, int]) -> Iterator[tuple[str, np.ndarray]]:
    """The stored tensors of a matrix [N, K] that the scheme quantises."""
    (rows, cols), base = shape, name.removesuffix("weight")
    groups = cols // GROUP
    if kind == "fp8":
        codes = (_POOL * 2000).astype(ml_dtypes.float8_e4m3fn)
        yield name, np.resize(codes, shape)
        yield f"{name}_scale_inv", np.full((-(-rows // 128), -(-cols // 128)), 1e-4, np.float32)
    elif kind.startswith("gptq"):
        order = np.arange(cols, dtype=np.int32) // GROUP
        if "act-order" in kind:
            order = np.random.default_rng(cols).permutation(order).astype(np.int32)
        yield f"{base}qweight", _words(cols // 8, rows)
        yield f"{base}qzeros", np.full((groups, rows // 8), 0x77777777, np.int32)
        yield f"{base}scales", np.full((groups, rows), 0.003, np.float16)
        yield f"{base}g_idx", order
    elif kind == "awq":
        yield f"{base}qweight", _words(cols, rows // 8)
        yield f"{base}qzeros", _words(groups, rows // 8)
        yield f"{base}scales", np.full((groups, rows), 0.003, np.float16)
    else:
        yield name, _values(shape, DTYPES[kind])


def _frame(layers: int, dtype: Any) -> Tensors:
    """Tables and norms."""
    tensors: Tensors = {}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = _values((V, H), dtype)
    tensors["model.norm.weight"] = np.ones(H, dtype)
    for n in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{n}.{norm}.weight"] = np.ones(H, dtype)
    return tensors


def _mixtral(kind: str, layers: int) -> tuple[Tensors, dict[str, Any]]:
    dtype = DTYPES.get(kind, np.float16 if kind[:4] in ("gptq", "awq") else ml_dtypes.bfloat16)
    tensors = _frame(layers, dtype)
    for n in range(layers):
        layer = f"model.layers.{n}"
        tensors[f"{layer}.block_sparse_moe.gate.weight"] = _values((E, H), dtype)
        for part in "qkvo":
            tensors |= dict(_linear(kind, f"{layer}.self_attn.{part}_proj.weight", (H, H)))
        for e in range(E):
            for role, shape in (("w1", (F, H)), ("w3", (F, H)), ("w2", (H, F))):
                name = f"{layer}.block_sparse_moe.experts.{e}.{role}.weight"
                tensors |= dict(_linear(kind, name, shape))
    return tensors, {"model_type": "mixtral"}


def _gpt_oss(kind: str, layers: int) -> tuple[Tensors, dict[str, Any]]:
    """Banks, transposed and with gate and up alternating, or in blocks of MXFP4."""
    dtype = ml_dtypes.bfloat16
    tensors = _frame(layers, dtype)
    for n in range(layers):
        layer = f"model.layers.{n}"
        for part in "qkvo":
            tensors[f"{layer}.self_attn.{part}_proj.weight"] = _values((H, H), dtype)
            tensors[f"{layer}.self_attn.{part}_proj.bias"] = np.zeros(H, dtype)
        tensors[f"{layer}.self_attn.sinks"] = np.zeros(HEADS, dtype)
        tensors[f"{layer}.mlp.router.weight"] = _values((E, H), dtype)
        tensors[f"{layer}.mlp.router.bias"] = np.zeros(E, dtype)
        for role, rows, cols in (("gate_up_proj", 2 * F, H), ("down_proj", H, F)):
            name = f"{layer}.mlp.experts.{role}"
            tensors[f"{name}_bias"] = np.zeros((E, rows), dtype)
            if kind == "mxfp4":
                tensors[f"{name}_blocks"] = np.resize(_BYTES, (E, rows, cols // 32, 16))
                tensors[f"{name}_scales"] = np.full((E, rows, cols // 32), 121, np.uint8)
            else:
                tensors[name] = _values((E, cols, rows), dtype)
    types = ["full_attention"] * layers
    return tensors, {"model_type": "gpt_oss", "layer_types": types, "rope_scaling": None}


def write(path: Path, layers: int, kind: str = "bf16") -> Path:
    """A model of `layers` layers of about 13 million values in `path`, which must not exist."""
    if kind.startswith("gguf "):
        format = kind.removeprefix("gguf ")
        plain = write(path.with_name(f"{path.name}-plain"), layers, "bf16")
        path.mkdir()
        mk.load(plain, None if format == "bf16" else format).save(path / "model.gguf")
        return path
    make: Callable[[str, int], tuple[Tensors, dict[str, Any]]]
    make = _gpt_oss if kind in ("mxfp4", "fused") else _mixtral
    tensors, config = make(kind, layers)
    config |= {
        "hidden_size": H,
        "intermediate_size": F,
        "num_hidden_layers": layers,
        "num_local_experts": E,
        "num_experts_per_tok": 2,
        "vocab_size": V,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": H // HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "tie_word_embeddings": False,
    }
    if kind in QUANTISED:
        config["quantization_config"] = QUANTISED[kind]
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path
