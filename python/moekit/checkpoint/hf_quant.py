"""Quantised weights of Hugging Face checkpoints as float32, in the layout of a plain checkpoint.

Every function checks the shapes and raises ValueError; results are row-major [out, in] matrices
(or banks [E, out, in]) unless said otherwise.
"""

from collections.abc import Sequence
from math import lcm

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .source import Array

F32 = npt.NDArray[np.float32]

# GPTQ and AWQ: rows worked on at once, so that scales gathered by row stay in cache.
_INDICES = 1 << 16
_ROWS = 128
# AWQ's order: nibble i of a word is column _AWQ_COLUMNS[i] of its eight.
_AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
# E8M0: 2**(code - 127), 255 is NaN (OCP Microscaling Formats 1.0, section 5.4.1).
_E8M0 = np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.nan).astype(np.float32)
# Both values of a byte of E2M1, the low nibble first: float32 [256, 2].
_E2M1: F32 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
_E2M1_PAIRS: F32 = _E2M1[np.arange(256)[:, None] >> np.array([0, 4]) & 15]


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)


def scale_values(scales: Array) -> F32:
    """Scales as float32; bytes are E8M0 exponents."""
    if scales.dtype == np.uint8 or scales.dtype == ml_dtypes.float8_e8m0fnu:
        return _E8M0[scales.view(np.uint8)]
    return scales.astype(np.float32)


def dequantize_fp8(weight: Array, scale_inv: Array, block: Sequence[int] = (128, 128)) -> F32:
    """float32 [..., N, K] of float8 [..., N, K] and its `weight_scale_inv`.

    `scale_inv` is [..., ceil(N / block[0]), ceil(K / block[1])], edge blocks being cut, or one
    scale for the tensor; despite its name it multiplies (DeepSeek-V3, README_WEIGHTS.md).
    """
    _require(
        weight.dtype.name.startswith("float8") and weight.ndim > 0,
        f"[dequantize_fp8] weight is {weight.dtype} {list(weight.shape)}; float8 is required",
    )
    table = np.arange(256, dtype=np.uint8).view(weight.dtype).astype(np.float32)
    out = _looked_up(table, weight.view(np.uint8))
    scale = scale_values(scale_inv)
    if scale.size == 1:
        with np.errstate(all="ignore"):
            out *= scale.reshape(())
        return out
    _scale_blocks(out, scale, block, "dequantize_fp8")
    return out


def _looked_up(table: F32, codes: npt.NDArray[np.uint8]) -> F32:
    """`table[codes]`, a part at a time: NumPy makes 64-bit indices of the bytes."""
    flat = codes.reshape(-1)
    out = np.empty((flat.size, *table.shape[1:]), np.float32)
    for first in range(0, flat.size, _INDICES):
        out[first : first + _INDICES] = table[flat[first : first + _INDICES]]
    return out.reshape(*codes.shape, *table.shape[1:])


def scale_grid(scale: F32, shape: Sequence[int], block: Sequence[int]) -> F32:
    """float32 [E, n, k] of the scales of a weight [N, K] or [E, N, K]: one, or one for each block.

    ValueError for another number of them.
    """
    if scale.size == 1:
        return scale.reshape(1, 1, 1)
    check_grid(scale.shape, shape, block, "dequantize_fp8")
    return scale.reshape(-1, *scale.shape[-2:])


def check_grid(
    found: Sequence[int], shape: Sequence[int], block: Sequence[int], op: str = "dequantize_fp8"
) -> None:
    """ValueError unless `found` is the shape of the scales of a weight of `shape`."""
    high, wide = block
    wanted = (*shape[:-2], -(-shape[-2] // high), -(-shape[-1] // wide)) if len(shape) >= 2 else ()
    _require(
        tuple(found) == wanted,
        f"[{op}] scales {list(found)} for weight {list(shape)}; blocks of "
        f"{high} x {wide} require {list(wanted)}",
    )


def _scale_blocks(out: F32, scale: F32, block: Sequence[int], op: str) -> None:
    """Multiply [..., N, K] in place by its grid of scales."""
    check_grid(scale.shape, out.shape, block, op)
    high, wide = block
    rows, columns = out.shape[-2:]
    bank, grid = out.reshape(-1, rows, columns), scale.reshape(-1, *scale.shape[-2:])
    with np.errstate(all="ignore"):
        for matrix, factors in zip(bank, grid, strict=True):
            for index, row in enumerate(factors):
                matrix[index * high : (index + 1) * high] *= np.repeat(row, wide)[:columns]


def _unpack_e2m1(packed: Array) -> F32:
    """float32 [..., 2 n] of [..., n] bytes with two 4-bit floats each, the low nibble first."""
    pairs = _looked_up(_E2M1_PAIRS, packed.view(np.uint8))
    return pairs.reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def dequantize_fp4(packed: Array, scale_inv: Array, block: Sequence[int] = (1, 32)) -> F32:
    """float32 [..., N, K] of E2M1 pairs in bytes [..., N, K / 2], with a grid of scales."""
    out = _unpack_e2m1(packed)
    _scale_blocks(out, scale_values(scale_inv), block, "dequantize_fp4")
    return out


def dequantize_mxfp4(blocks: Array, scales: Array) -> F32:
    """float32 [..., N, K] of gpt-oss' `_blocks` uint8 [..., N, K / 32, 16] and `_scales`.

    `_scales` is uint8 [..., N, K / 32], one E8M0 exponent for 32 values; a byte holds two E2M1
    values, the low nibble first. Of an expert bank N is the output axis, so that the plain
    checkpoint's [E, in, out] is the transpose of the last two axes.
    """
    _require(
        blocks.dtype == np.uint8 and blocks.ndim >= 2 and blocks.shape[-1] == 16,
        f"[dequantize_mxfp4] blocks are {blocks.dtype} {list(blocks.shape)}; "
        "uint8 [..., 16] is required",
    )
    _require(
        scales.shape == blocks.shape[:-1] and scales.dtype.itemsize == 1,
        f"[dequantize_mxfp4] scales are {scales.dtype} {list(scales.shape)}; "
        f"uint8 {list(blocks.shape[:-1])} is required",
    )
    out = _unpack_e2m1(blocks)
    with np.errstate(all="ignore"):  # the format's largest scales overflow float32
        out *= _E8M0[scales.view(np.uint8)][..., None]
    return out.reshape(*blocks.shape[:-2], blocks.shape[-2] * 32)


def unpack_rows(words: Array, bits: int) -> npt.NDArray[np.uint8]:
    """uint8 [n, N] of int32 [n * bits / 32, N]: fields of `bits` bits running down each column.

    The words of a column are one stream of bits, lowest first, so that with 3 bits a field may
    lie across two words.
    """
    period = lcm(bits, 32) // 32  # words after which a field begins with a word again
    _require(
        words.dtype.itemsize == 4 and words.ndim == 2 and words.shape[0] % period == 0,
        f"[unpack_rows] {words.dtype} {list(words.shape)}; int32 [n x {period}, N] is required",
    )
    streams = words.view(np.uint32).reshape(-1, period, words.shape[1])
    fields = period * 32 // bits
    out = np.empty((streams.shape[0], fields, words.shape[1]), np.uint8)
    mask = np.uint32((1 << bits) - 1)
    for field in range(fields):
        word, shift = divmod(field * bits, 32)
        value = streams[:, word] >> np.uint32(shift)
        if shift + bits > 32:
            value = value | streams[:, word + 1] << np.uint32(32 - shift)
        out[:, field] = value & mask
    return out.reshape(-1, words.shape[1])


def dequantize_gptq(
    qweight: Array,
    qzeros: Array,
    scales: Array,
    g_idx: Array | None = None,
    *,
    bits: int = 4,
    group_size: int = 128,
    zero_offset: int = 1,
) -> F32:
    """float32 [N, K] of a GPTQ layer: scales[g] * (q - (zeros[g] + zero_offset)).

    Shapes: qweight int32 [K * bits / 32, N], qzeros int32 [G, N * bits / 32], scales [G, N],
    g_idx int32 [K] the group of each input (None: input k is in group k // group_size; -1 as
    `group_size` is one group). `bits` is 2, 3, 4 or 8. The stored zero is one too low in the
    format `gptq`, and true in `gptq_v2` (`zero_offset=0`).
    """
    zeros = gptq_zeros(qzeros, bits=bits, zero_offset=zero_offset)
    q = gptq_codes(qweight, bits=bits)
    if g_idx is None:
        g_idx = groups_in_order(len(q), group_size)
    return by_groups(q, zeros, scales, g_idx, "dequantize_gptq")


def groups_in_order(rows: int, group_size: int) -> npt.NDArray[np.int64]:
    """The group of each of K inputs where neighbours share one; -1 is one group for all."""
    size = group_size if group_size > 0 else max(rows, 1)
    return np.arange(rows, dtype=np.int64) // size


def gptq_codes(qweight: Array, *, bits: int) -> npt.NDArray[np.uint8]:
    """Integers uint8 [K, N] of a GPTQ layer; see `dequantize_gptq`."""
    return unpack_rows(qweight, bits)


def gptq_zeros(qzeros: Array, *, bits: int, zero_offset: int) -> F32:
    """Zeros float32 [G, N] of a GPTQ layer."""
    _require(bits in (2, 3, 4, 8), f"[dequantize_gptq] {bits} bits; 2, 3, 4 or 8 are read")
    return unpack_rows(np.ascontiguousarray(qzeros.T), bits).T.astype(np.float32) + zero_offset


def dequantize_awq(qweight: Array, qzeros: Array, scales: Array, *, group_size: int = 128) -> F32:
    """float32 [N, K] of an AWQ layer (4 bits, version `gemm`): scales[g] * (q - zeros[g]).

    Shapes: qweight int32 [K, N / 8], qzeros int32 [G, N / 8], scales [G, N]; eight columns share
    a word, in the order 0 2 4 6 1 3 5 7 from its lowest nibble.
    """
    q, zeros = awq_codes(qweight), awq_zeros(qzeros)
    return by_groups(q, zeros, scales, groups_in_order(len(q), group_size), "dequantize_awq")


def awq_zeros(qzeros: Array) -> F32:
    """Zeros float32 [G, N] of an AWQ layer."""
    return awq_codes(qzeros).astype(np.float32)


def awq_codes(words: Array) -> npt.NDArray[np.uint8]:
    """Integers uint8 [rows, N] of words [rows, N / 8] of an AWQ layer."""
    _require(
        words.dtype.itemsize == 4 and words.ndim == 2,
        f"[dequantize_awq] {words.dtype} {list(words.shape)}; int32 [rows, N / 8] is required",
    )
    out = np.empty((*words.shape, 8), np.uint8)
    for index, column in enumerate(_AWQ_COLUMNS):
        out[:, :, column] = words.view(np.uint32) >> np.uint32(4 * index) & np.uint32(15)
    return out.reshape(len(words), -1)


def by_groups(q: Array, zeros: Array, scales: Array, groups: Array, op: str) -> F32:
    """float32 [N, K]: scales[g] * (q - zeros[g]) of q [K, N] with g = groups[k]."""
    rows, columns = q.shape
    _require(
        scales.ndim == 2 and scales.shape == zeros.shape and scales.shape[1] == columns,
        f"[{op}] scales {list(scales.shape)}, zeros {list(zeros.shape)}; both must be "
        f"[groups, {columns}]",
    )
    _require(
        groups.shape == (rows,) and groups.dtype.kind in "iu",
        f"[{op}] g_idx is {groups.dtype} {list(groups.shape)}; int32 [{rows}] is required",
    )
    if rows:
        low, high = int(groups.min()), int(groups.max())
        _require(
            low >= 0 and high < len(scales),
            f"[{op}] groups {low} to {high}; there are {len(scales)}",
        )
    factors = scales.astype(np.float32)
    out = np.empty((columns, rows), np.float32)
    for first in range(0, rows, _ROWS):
        g = groups[first : first + _ROWS]
        values = q[first : first + _ROWS].astype(np.float32)
        values -= zeros[g]
        with np.errstate(all="ignore"):
            values *= factors[g]
        out[:, first : first + _ROWS] = values.T
    return out
