"""Plain checkpoints written anew as FP8, GPTQ and AWQ ones, by loops of their own.

Each quantiser takes a matrix [N, K] and gives (stored tensors by suffix, the values they mean).
"""

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

from moekit.checkpoint import write_safetensors

Quantised = tuple[dict[str, np.ndarray], np.ndarray]
Quantiser = Callable[[np.ndarray], Quantised]

_LINEAR = ("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight", "mqa.weight")


def fp8(w: np.ndarray, block: int = 128) -> Quantised:
    """e4m3 with a scale for each block of rows and columns, those at the edges cut."""
    rows, cols = w.shape
    stored = np.zeros(w.shape, ml_dtypes.float8_e4m3fn)
    scales = np.zeros((-(-rows // block), -(-cols // block)), np.float32)
    values = np.zeros(w.shape, np.float32)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            place = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
            scales[i, j] = np.abs(w[place]).max() / 448
            stored[place] = (w[place] / scales[i, j]).astype(ml_dtypes.float8_e4m3fn)
            values[place] = stored[place].astype(np.float32) * scales[i, j]
    return {"weight": stored, "weight_scale_inv": scales}, values


def _pack(values: np.ndarray, bits: int) -> np.ndarray:
    """int32 [n * bits / 32, N] of integers [n, N], for bits that divide 32."""
    each = 32 // bits
    words = values.astype(np.uint32).reshape(-1, each, values.shape[1])
    out = np.zeros((words.shape[0], values.shape[1]), np.uint32)
    for i in range(each):
        out |= words[:, i] << np.uint32(bits * i)
    return out.view(np.int32)


def gptq(
    w: np.ndarray, bits: int = 4, group: int = 32, symmetric: bool = True, act_order: bool = False
) -> Quantised:
    """Round to nearest on a grid for each group of inputs; act-order shuffles who is in which."""
    rows, cols = w.shape
    size = cols if group == -1 else group
    groups = np.arange(cols, dtype=np.int32) // size
    if act_order:
        groups = np.random.default_rng(cols).permutation(groups).astype(np.int32)
    count, most = -(-cols // size), (1 << bits) - 1
    scales = np.zeros((count, rows), np.float16)
    zeros = np.zeros((count, rows), np.int64)
    codes = np.zeros((cols, rows), np.int64)
    values = np.zeros((rows, cols), np.float32)
    for g in range(count):
        for n in range(rows):
            x = w[n, groups == g]
            if symmetric:
                scales[g, n], zeros[g, n] = 2 * np.abs(x).max() / most, (most + 1) // 2
            else:
                scales[g, n] = (x.max() - x.min()) / most
                zeros[g, n] = np.clip(np.round(-x.min() / np.float32(scales[g, n])), 1, most)
            scale = np.float32(scales[g, n])
            code = np.clip(np.round(x / scale) + zeros[g, n], 0, most).astype(np.int64)
            codes[groups == g, n] = code
            values[n, groups == g] = scale * (code - zeros[g, n])
    stored = {
        "qweight": _pack(codes, bits),
        "qzeros": np.ascontiguousarray(_pack((zeros - 1).T, bits).T),
        "scales": scales,
        "g_idx": groups,
    }
    return stored, values


def awq(w: np.ndarray, group: int = 32) -> Quantised:
    """Four bits with zeros, eight columns of outputs in a word in AWQ's order."""
    stored, values = gptq(w, 4, group, symmetric=False)
    cols, rows = w.shape[1], w.shape[0]
    shifts = np.arange(8, dtype=np.uint32) * 4
    codes = (stored["qweight"].view(np.uint32)[:, None, :] >> shifts[None, :, None]) & 15
    zeros = (stored["qzeros"].view(np.uint32)[:, :, None] >> shifts) & 15
    codes, zeros = codes.reshape(cols, rows), zeros.reshape(-1, rows) + 1
    out = {"scales": stored["scales"]}
    for name, matrix in (("qweight", codes), ("qzeros", zeros)):
        words = np.zeros((len(matrix), rows // 8), np.uint32)
        for column in range(rows):
            place = (0, 4, 1, 5, 2, 6, 3, 7)[column % 8]
            words[:, column // 8] |= matrix[:, column].astype(np.uint32) << np.uint32(4 * place)
        out[name] = words.view(np.int32)
    return out, values


def quantise_checkpoint(
    plain: Path, target: Path, quantiser: Quantiser, config: dict[str, object]
) -> dict[str, np.ndarray]:
    """Write the checkpoint at `plain` quantised; returns what its tensors mean, by plain name."""
    target.mkdir()
    tensors: dict[str, np.ndarray] = {}
    meant: dict[str, np.ndarray] = {}
    for name, value in load_file(plain / "model.safetensors").items():
        if not name.endswith(_LINEAR):
            tensors[name] = meant[name] = value
            continue
        stored, meant[name] = quantiser(value)
        base = name.removesuffix("weight")
        tensors |= {base + suffix: part for suffix, part in stored.items()}
    write_safetensors(target / "model.safetensors", tensors, {"format": "pt"})
    fields = json.loads((plain / "config.json").read_text())
    text = json.dumps({**fields, "quantization_config": config})
    (target / "config.json").write_text(text)
    return meant
