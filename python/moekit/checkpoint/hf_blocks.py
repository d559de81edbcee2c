"""Quantised Hugging Face weights as the bytes of ggml's blocks: the same numbers, nothing rounded.

Blocks are what `ops.pack_blocks` takes, uint8 [rows, bytes of a row], a row being one output.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import hf_quant
from .hf_scheme import Scheme
from .source import Array

Bytes = npt.NDArray[np.uint8]


def mxfp4_blocks(blocks: Array, scales: Array) -> Bytes:
    """MXFP4 blocks of gpt-oss' `_blocks` uint8 [N, K / 32, 16] and `_scales` uint8 [N, K / 32].

    A byte of `_blocks` holds the columns 2j and 2j + 1; a byte of ggml's holds j and j + 16, after
    the exponent (ggml-common.h, block_mxfp4).
    """
    rows, groups = scales.shape
    out = np.empty((rows, groups, 17), np.uint8)
    out[:, :, 0] = scales.view(np.uint8)
    _halves(_nibbles(blocks.view(np.uint8)), out[:, :, 1:])
    return out.reshape(rows, groups * 17)


def _nibbles(packed: Bytes) -> Bytes:
    """uint8 [..., 2n] of bytes [..., n], the low nibble first."""
    out = np.empty((*packed.shape, 2), np.uint8)
    out[..., 0] = packed & 15
    out[..., 1] = packed >> 4
    return out.reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def _halves(codes: Bytes, out: Bytes) -> None:
    """Write 4-bit codes [..., 32] as ggml pairs them: column j low, column j + 16 high."""
    np.bitwise_or(codes[..., :16], codes[..., 16:] << 4, out=out)


def q4_0_blocks(codes: Bytes, scales: npt.NDArray[np.float16], group_size: int) -> Bytes:
    """Q4_0 blocks of 4-bit codes [N, K] (value code - 8) and scales [N, K / group_size].

    `group_size` is a multiple of 32: neighbouring blocks repeat the group's scale.
    """
    rows, cols = codes.shape
    out = np.empty((rows, cols // 32, 18), np.uint8)
    out[:, :, :2] = _repeated(scales, cols, group_size)
    _halves(codes.reshape(rows, -1, 32), out[:, :, 2:])
    return out.reshape(rows, -1)


def q4_1_blocks(
    codes: Bytes,
    scales: npt.NDArray[np.float16],
    least: npt.NDArray[np.float16],
    group_size: int,
) -> Bytes:
    """Q4_1 blocks of 4-bit codes [N, K] with value scale * code + least."""
    rows, cols = codes.shape
    out = np.empty((rows, cols // 32, 20), np.uint8)
    out[:, :, :2] = _repeated(scales, cols, group_size)
    out[:, :, 2:4] = _repeated(least, cols, group_size)
    _halves(codes.reshape(rows, -1, 32), out[:, :, 4:])
    return out.reshape(rows, -1)


def q8_0_blocks(codes: Bytes, scales: npt.NDArray[np.float16], group_size: int) -> Bytes:
    """Q8_0 blocks of 8-bit codes [N, K] (value code - 128)."""
    rows, cols = codes.shape
    out = np.empty((rows, cols // 32, 34), np.uint8)
    out[:, :, :2] = _repeated(scales, cols, group_size)
    out[:, :, 2:] = codes.reshape(rows, -1, 32) ^ np.uint8(0x80)
    return out.reshape(rows, -1)


def _repeated(values: npt.NDArray[np.float16], cols: int, group_size: int) -> Bytes:
    """float16 [N, groups] as bytes [N, cols / 32, 2]."""
    each = np.repeat(values, group_size // 32, axis=1)[:, : cols // 32]
    return np.ascontiguousarray(each).view(np.uint8).reshape(len(values), cols // 32, 2)


@dataclass(frozen=True, slots=True)
class LinearIntegers:
    """A GPTQ or AWQ layer: value = scale * (code - zero), groups of neighbouring inputs.

    `codes` are uint8 [N, K], `scales` and `zeros` [N, groups]. `group_size` is 0 where the groups
    are no runs of 32 inputs or more (act-order): no block can have one scale then.
    """

    codes: Bytes
    scales: Array
    zeros: npt.NDArray[np.float32]
    bits: int
    group_size: int

    @classmethod
    def read(cls, kind: str, parts: Mapping[str, Array], scheme: Scheme) -> "LinearIntegers":
        """From the stored tensors by their roles; ValueError where shapes disagree."""
        if kind == "awq":
            codes, zeros = hf_quant.awq_codes(parts["qweight"], parts["qzeros"])
        else:
            codes, zeros = hf_quant.gptq_codes(
                parts["qweight"],
                parts["qzeros"],
                bits=scheme.bits,
                zero_offset=scheme.zero_offset,
            )
        inputs, scales = len(codes), parts["scales"]
        in_order = hf_quant.groups_in_order(inputs, scheme.group_size)
        order = parts.get("g_idx")
        size = scheme.group_size if scheme.group_size > 0 else inputs
        groups = int(in_order[-1]) + 1 if inputs else 0
        plain = order is None or (order.shape == in_order.shape and bool((order == in_order).all()))
        fits = scales.shape == zeros.shape == (groups, codes.shape[1])
        if not (plain and fits and size % 32 == 0 and inputs % 32 == 0):
            size = 0
        return cls(np.ascontiguousarray(codes.T), scales.T, zeros.T, scheme.bits, size)

    @property
    def _symmetric(self) -> bool:
        return bool((self.zeros == 1 << (self.bits - 1)).all())

    def _half_scales(self) -> npt.NDArray[np.float16] | None:
        with np.errstate(all="ignore"):
            half = np.ascontiguousarray(self.scales).astype(np.float16)
        return half if bool((half == self.scales).all()) else None

    def formats(self) -> tuple[str, ...]:
        """The packed formats, nearest first. q4_0 and 8-bit q8_0 keep everything; in q4_1 a
        group's least value, scale * -zero, is rounded to half precision."""
        if not self.group_size or self._half_scales() is None:
            return ("q8_0",)
        if self.bits > 4:
            return ("q8_0",)
        return ("q4_0", "q8_0") if self._symmetric else ("q4_1", "q8_0")

    def blocks(self, format: str) -> Bytes | None:
        """The bytes of `format`, which is one of `formats`; None where it would round."""
        scales = self._half_scales()
        if not self.group_size or scales is None:
            return None
        if format == "q4_1" and self.bits <= 4:
            least = (-self.zeros * self.scales.astype(np.float32)).astype(np.float16)
            return q4_1_blocks(self.codes, scales, least, self.group_size)
        if not self._symmetric:
            return None
        if format == "q4_0" and self.bits <= 4:
            centred = self.codes + np.uint8(8 - (1 << (self.bits - 1)))
            return q4_0_blocks(centred, scales, self.group_size)
        if format == "q8_0" and self.bits == 8:
            return q8_0_blocks(self.codes, scales, self.group_size)
        return None
