"""Quantised Hugging Face weights as the bytes of ggml's blocks: the same numbers, nothing rounded.

Blocks are what `ops.pack_blocks` takes, uint8 [rows, bytes of a row], a row being one output.
"""

from collections.abc import Callable, Mapping, Sequence

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


class LinearIntegers:
    """A GPTQ or AWQ layer [N, K]: value = scale * (code - zero), inputs in groups.

    `shape` is [N, K]; `parts` are the stored tensors by their roles but `qweight`, of which
    `read(first, last)` gives columns: the layer's integers are unpacked some outputs at a time.
    ValueError where shapes disagree.
    """

    def __init__(
        self,
        kind: str,
        shape: Sequence[int],
        parts: Mapping[str, Array],
        scheme: Scheme,
        read: Callable[[int, int], Array],
    ) -> None:
        self._kind, self._read = kind, read
        self.bits = scheme.bits
        outputs, inputs = shape
        if kind == "awq":
            self._zeros = hf_quant.awq_zeros(parts["qzeros"])
        else:
            self._zeros = hf_quant.gptq_zeros(
                parts["qzeros"], bits=scheme.bits, zero_offset=scheme.zero_offset
            )
        self._scales = parts["scales"]
        # A part of the outputs is taken out of both: what is too wide would go unnoticed.
        if self._scales.shape != self._zeros.shape or self._scales.shape[1:] != (outputs,):
            raise ValueError(
                f"[dequantize_{kind}] scales {list(self._scales.shape)}, zeros "
                f"{list(self._zeros.shape)}; both must be [groups, {outputs}]"
            )
        # Integers have no NaN: fitted anew, the group would become zeros.
        broken = np.argwhere(~np.isfinite(self._scales.astype(np.float32)))
        if len(broken):
            group, output = (int(i) for i in broken[0])
            raise ValueError(
                f"[dequantize_{kind}] the scale of group {group}, output {output} is "
                f"{self._scales[group, output]}; finite ones are required"
            )
        in_order = hf_quant.groups_in_order(inputs, scheme.group_size)
        order = parts.get("g_idx")
        self._groups = in_order if order is None else order
        size = scheme.group_size if scheme.group_size > 0 else inputs
        groups = int(in_order[-1]) + 1 if inputs else 0
        plain = order is None or (order.shape == in_order.shape and bool((order == in_order).all()))
        fits = self._scales.shape == self._zeros.shape == (groups, outputs)
        # 0 where groups are no runs of 32 inputs or more (act-order): no block has one scale then.
        aligned = plain and fits and size % 32 == 0 and inputs % 32 == 0
        self.group_size = size if aligned else 0
        self._symmetric = bool((self._zeros == 1 << (self.bits - 1)).all())
        with np.errstate(all="ignore"):
            half = self._scales.astype(np.float16)
        self._half = half if bool((half == self._scales).all()) else None

    def codes(self, first: int, last: int) -> Bytes:
        """Integers uint8 [K, n] of the outputs `first:last`."""
        if self._kind == "awq":
            words = self._read(first // 8, -(-last // 8))
            return hf_quant.awq_codes(words)[:, first % 8 : first % 8 + last - first]
        return hf_quant.gptq_codes(self._read(first, last), bits=self.bits)

    def values(self, first: int, last: int) -> npt.NDArray[np.float32]:
        """Float32 [n, K] of the outputs `first:last`."""
        some = slice(first, last)
        return hf_quant.by_groups(
            self.codes(first, last),
            self._zeros[:, some],
            self._scales[:, some],
            self._groups,
            f"dequantize_{self._kind}",
        )

    def formats(self) -> tuple[str, ...]:
        """The packed formats, nearest first. q4_0 and 8-bit q8_0 keep everything; in q4_1 a
        group's least value, scale * -zero, is rounded to half precision."""
        if not self.group_size or self._half is None:
            return ("q8_0",)
        if self.bits > 4:
            return ("q8_0",)
        return ("q4_0", "q8_0") if self._symmetric else ("q4_1", "q8_0")

    def blocks(self, format: str, first: int, last: int) -> Bytes | None:
        """The bytes of `format` of the outputs `first:last`; None where it would round."""
        half, group = self._half, self.group_size
        wanted = (
            (format == "q4_1" and self.bits <= 4)
            or (format == "q4_0" and self.bits <= 4 and self._symmetric)
            or (format == "q8_0" and self.bits == 8 and self._symmetric)
        )
        if not group or half is None or not wanted:
            return None
        codes = np.ascontiguousarray(self.codes(first, last).T)
        scales = np.ascontiguousarray(half[:, first:last].T)
        if format == "q8_0":
            return q8_0_blocks(codes, scales, group)
        if format == "q4_0":
            codes += np.uint8(8 - (1 << (self.bits - 1)))
            return q4_0_blocks(codes, scales, group)
        zeros = self._zeros[:, first:last].T
        least = (-zeros * scales.astype(np.float32)).astype(np.float16)
        return q4_1_blocks(codes, scales, least, group)
