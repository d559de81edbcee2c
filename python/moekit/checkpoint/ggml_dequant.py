"""ggml's quantised blocks as float32, vectorised: `dequantize` and the formats that need no grid.

Every function takes uint8 [blocks, bytes of a block] and returns float32 [blocks, elements]. The
order of the float operations is that of ggml's reference (ggml-quants.c), so that results agree to
the last bit. The struct of each block stands in its function's docstring.
"""

from collections.abc import Callable

import numpy as np

from . import ggml_iq
from .ggml_bits import E2M1_DOUBLED, F32, U8, bits_of, fields, half, quarters_of, six_bit_pairs
from .ggml_types import QUANTISED

# Elements worked on at once: their intermediate arrays stay within the second-level cache.
_CHUNK_ELEMENTS = 1 << 16


def dequantize(blocks: U8, type_name: str, out: F32 | None = None) -> F32:
    """float32 [rows, columns] of the uint8 [rows, bytes] that a file holds for a ggml type.

    `type_name` is the GGUF name in either case ("q4_k"). `out`, if given, is a contiguous float32
    array of as many elements that takes the values. ValueError for an unknown type or for rows
    that are not whole blocks.
    """
    storage = QUANTISED.get(type_name.upper())
    if storage is None:
        known = " ".join(QUANTISED)
        raise ValueError(f"[dequantize] type {type_name!r}; one of {known} is required")
    blocks = np.asarray(blocks)
    if blocks.dtype != np.uint8 or blocks.ndim != 2 or blocks.shape[1] % storage.block_bytes:
        raise ValueError(
            f"[dequantize] {blocks.dtype} {list(blocks.shape)}; uint8 [rows, n x "
            f"{storage.block_bytes}] is required for {storage.name}"
        )
    rows, row_bytes = blocks.shape
    columns = row_bytes // storage.block_bytes * storage.block
    if out is None:
        out = np.empty((rows, columns), np.float32)
    elif out.dtype != np.float32 or out.size != rows * columns or not out.flags.c_contiguous:
        raise ValueError(
            f"[dequantize] out is {out.dtype} of {out.size} elements; contiguous float32 of "
            f"{rows * columns} is required"
        )
    source = np.ascontiguousarray(blocks).reshape(-1, storage.block_bytes)
    target = out.reshape(-1, storage.block)
    decode = _DECODERS[storage.name]
    step = max(1, _CHUNK_ELEMENTS // storage.block)
    # A hostile scale may be infinite or NaN: the values say so, no warning is due.
    with np.errstate(all="ignore"):
        for first in range(0, len(source), step):
            target[first : first + step] = decode(source[first : first + step])
    return out


def _q1_0(b: U8) -> F32:
    """d f16, 128 sign bits."""
    d = half(b, 0)
    return np.where(bits_of(b[:, 2:18]) != 0, d, -d)


def _q4_0(b: U8) -> F32:
    """d f16, 16 x two nibbles: the low ones are elements 0-15, the high ones 16-31."""
    return half(b, 0) * (fields(b[:, 2:], 16, 4).astype(np.float32) - np.float32(8))


def _q4_1(b: U8) -> F32:
    """d f16, m f16, nibbles."""
    return half(b, 0) * fields(b[:, 4:], 16, 4).astype(np.float32) + half(b, 2)


def _fives(low: U8, high: U8) -> F32:
    return (fields(low, 16, 4) | (bits_of(high) << 4)).astype(np.float32)


def _q5_0(b: U8) -> F32:
    """d f16, 32 fifth bits, nibbles."""
    return half(b, 0) * (_fives(b[:, 6:], b[:, 2:6]) - np.float32(16))


def _q5_1(b: U8) -> F32:
    """d f16, m f16, 32 fifth bits, nibbles."""
    return half(b, 0) * _fives(b[:, 8:], b[:, 4:8]) + half(b, 2)


def _q8_0(b: U8) -> F32:
    """d f16, 32 int8."""
    return b[:, 2:].view(np.int8).astype(np.float32) * half(b, 0)


def _q2_k(b: U8) -> F32:
    """16 x (4-bit scale, 4-bit min), 64 bytes of 2-bit values, d f16, dmin f16."""
    scales = b[:, :16]
    d = (half(b, 80) * (scales & 15).astype(np.float32))[:, :, None]
    m = (half(b, 82) * (scales >> 4).astype(np.float32))[:, :, None]
    q = fields(b[:, 16:80], 32, 2).reshape(-1, 16, 16).astype(np.float32)
    return (d * q - m).reshape(-1, 256)


def _q3_k(b: U8) -> F32:
    """32 bytes of third bits (inverted), 64 bytes of 2-bit values, 12 bytes of scales, d f16."""
    # Scales have 6 bits: 16 nibbles in bytes 0-7, their upper two bits in bytes 8-11.
    low = fields(b[:, 96:104], 8, 4)
    high = quarters_of(b[:, 104:108])
    scales = (low | (high << 4)).astype(np.float32) - np.float32(32)
    d = (half(b, 108) * scales)[:, :, None]
    q = fields(b[:, 32:96], 32, 2).astype(np.float32)
    q -= (fields(b[:, :32], 32, 1) ^ 1).astype(np.float32) * np.float32(4)
    return (d * q.reshape(-1, 16, 16)).reshape(-1, 256)


def _q4_k(b: U8) -> F32:
    """d f16, dmin f16, 8 x (6-bit scale, 6-bit min) in 12 bytes, 128 bytes of nibbles."""
    scale, low = six_bit_pairs(b[:, 4:16])
    d = (half(b, 0) * scale)[:, :, None]
    m = (half(b, 2) * low)[:, :, None]
    q = fields(b[:, 16:], 32, 4).reshape(-1, 8, 32).astype(np.float32)
    return (d * q - m).reshape(-1, 256)


def _q5_k(b: U8) -> F32:
    """As Q4_K, with 32 bytes of fifth bits before the nibbles."""
    scale, low = six_bit_pairs(b[:, 4:16])
    d = (half(b, 0) * scale)[:, :, None]
    m = (half(b, 2) * low)[:, :, None]
    q = (fields(b[:, 48:], 32, 4) | (fields(b[:, 16:48], 32, 1) << 4)).astype(np.float32)
    return (d * q.reshape(-1, 8, 32) - m).reshape(-1, 256)


def _q6_k(b: U8) -> F32:
    """128 bytes of nibbles, 64 bytes of their upper two bits, 16 int8 scales, d f16."""
    d = (half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32))[:, :, None]
    q = fields(b[:, :128], 64, 4) | (fields(b[:, 128:192], 32, 2) << 4)
    return (d * (q.astype(np.float32) - np.float32(32)).reshape(-1, 16, 16)).reshape(-1, 256)


def _tq1_0(b: U8) -> F32:
    """48 bytes of five ternary digits, 4 bytes of four, d f16."""
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[None, :, None]
    # Digit i is what a multiplication by 3**i modulo 256 brings to the top.
    parts = (
        b[:, None, :32] * powers,
        b[:, None, 32:48] * powers,
        b[:, None, 48:52] * powers[:, :4],
    )
    digits = np.concatenate([part.reshape(len(b), -1) for part in parts], axis=1)
    q = (digits.astype(np.uint16) * 3 >> 8).astype(np.float32) - np.float32(1)
    return half(b, 52) * q


def _tq2_0(b: U8) -> F32:
    """64 bytes of 2-bit values, d f16."""
    return half(b, 64) * (fields(b[:, :64], 32, 2).astype(np.float32) - np.float32(1))


# 2**(e-128): half of the scale, since the table below holds doubled values; subnormal below 2.
_E8M0_HALF = np.ldexp(np.float32(1), np.arange(256) - 128).astype(np.float32)


def _mxfp4(b: U8) -> F32:
    """e8m0 scale, 16 x two E2M1 nibbles (OCP Microscaling Formats 1.0, section 5)."""
    return _E8M0_HALF[b[:, :1]] * E2M1_DOUBLED[fields(b[:, 1:], 16, 4)]


def _ue4m3_half() -> F32:
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, mantissa / 512, (1 + mantissa / 8) * 2.0 ** (exponent - 7)) / 2
    value[0x7F] = 0  # NaN of E4M3: ggml reads it as zero
    return value.astype(np.float32)


_UE4M3_HALF = _ue4m3_half()


def _nvfp4(b: U8) -> F32:
    """Four unsigned E4M3 scales, then 4 x 8 bytes: each a sub-block of 16 E2M1 nibbles."""
    d = _UE4M3_HALF[b[:, :4]][:, :, None]
    q = E2M1_DOUBLED[fields(b[:, 4:], 8, 4)].reshape(-1, 4, 16)
    return (d * q).reshape(-1, 64)


_DECODERS: dict[str, Callable[[U8], F32]] = {
    "Q1_0": _q1_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
    **ggml_iq.DECODERS,
}
