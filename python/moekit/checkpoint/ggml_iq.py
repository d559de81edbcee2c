"""ggml's IQ blocks as float32: codes into a grid of points, with signs kept apart.

Shapes and bit-exactness as in `ggml_dequant`; a super-block has 256 elements.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .ggml_bits import F32, U8, bits_of, fields, half, nibbles_of, words
from .ggml_grids import grid, sign_bytes

_QUARTER, _HALF = np.float32(0.25), np.float32(0.5)
_IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
# The IQ1 grids are moved by an eighth, up or down.
_DELTA = np.float32(0.125)
_SEVENS = np.array([0, 7, 14, 21], np.uint32)
_THREES = np.array([0, 3, 6, 9], np.uint16)


def _signs(sign_bits: U8) -> F32:
    """float32 [blocks, 256]: -1 where the bit is set."""
    return np.float32(1) - 2 * bits_of(sign_bits).astype(np.float32)


def _packed_signs(word: npt.NDArray[np.uint32]) -> F32:
    """The signs of [blocks, 8] 32-bit words, each with four codes of seven bits."""
    codes = (word[:, :, None] >> _SEVENS) & 127
    return _signs(sign_bytes()[codes].reshape(len(word), 32))


def _scaled(d: F32, points: F32, signs: F32) -> F32:
    """d [blocks, n] for 256/n elements each, times the points, times the signs."""
    scaled = d[:, :, None] * points.reshape(len(d), d.shape[1], -1)
    return scaled.reshape(len(d), 256) * signs


def _iq2_xxs(b: U8) -> F32:
    """d f16, 8 x (four 8-bit codes, a word of four sign codes and a 4-bit scale)."""
    w = words(b[:, 2:], "<u4").reshape(-1, 8, 2)
    codes = words(w[:, :, 0], "u1").reshape(-1, 32)
    d = half(b, 0) * (_HALF + (w[:, :, 1] >> 28).astype(np.float32)) * _QUARTER
    return _scaled(d, grid("IQ2_XXS")[codes], _packed_signs(w[:, :, 1]))


def _iq2_xs(b: U8) -> F32:
    """d f16, 32 x (9-bit code, 7-bit sign code), 16 scales of 4 bits."""
    w = words(b[:, 2:66], "<u2")
    d = half(b, 0) * (_HALF + nibbles_of(b[:, 66:])) * _QUARTER
    return _scaled(d, grid("IQ2_XS")[w & 511], _signs(sign_bytes()[w >> 9]))


def _iq2_s(b: U8) -> F32:
    """d f16, 32 low bytes of codes, 256 sign bits, 32 x 2 high bits, 16 scales of 4 bits."""
    high = fields(b[:, 66:74], 1, 2).astype(np.uint16)
    d = half(b, 0) * (_HALF + nibbles_of(b[:, 74:])) * _QUARTER
    return _scaled(d, grid("IQ2_S")[b[:, 2:34] | high << 8], _signs(b[:, 34:66]))


def _iq3_xxs(b: U8) -> F32:
    """d f16, 64 codes, 8 words of four sign codes and a 4-bit scale."""
    w = words(b[:, 66:], "<u4")
    d = half(b, 0) * (_HALF + (w >> 28).astype(np.float32)) * _HALF
    return _scaled(d, grid("IQ3_XXS")[b[:, 2:66]], _packed_signs(w))


def _iq3_s(b: U8) -> F32:
    """d f16, 64 low bytes of codes, 64 ninth bits, 256 sign bits, 8 scales of 4 bits."""
    codes = b[:, 2:66] | bits_of(b[:, 66:74]).astype(np.uint16) << 8
    d = half(b, 0) * (1 + 2 * nibbles_of(b[:, 106:]))
    return _scaled(d, grid("IQ3_S")[codes], _signs(b[:, 74:106]))


def _shifted(d: F32, codes: npt.NDArray[Any], down: npt.NDArray[Any]) -> F32:
    """d times (grid point +- 1/8), elements in groups of eight, one code each."""
    delta = np.where(down, -_DELTA, _DELTA)
    values: F32 = d[:, :, None] * (grid("IQ1")[codes] + delta[:, :, None])
    return values.reshape(len(d), 256)


def _iq1_s(b: U8) -> F32:
    """d f16, 32 low bytes of codes, 8 words: four 3-bit high parts, 3-bit scale, direction."""
    w = words(b[:, 34:], "<u2")
    codes = b[:, 2:34] | (((w[:, :, None] >> _THREES) & 7) << 8).reshape(-1, 32)
    d = half(b, 0) * (2 * ((w >> 12) & 7) + 1)
    down = (w & 0x8000) != 0
    return _shifted(np.repeat(d, 4, axis=1), codes, np.repeat(down, 4, axis=1))


def _iq1_m(b: U8) -> F32:
    """32 low bytes of codes, 32 nibbles (3 high bits, direction), 4 words: scales and the f16 d.

    The f16 is spread over the top nibbles of the four words; below lie four 3-bit scales each.
    """
    w = words(b[:, 48:], "<u2")
    d = ((w & 0xF000) >> np.array([12, 8, 4, 0], np.uint16)).astype(np.uint16)
    d = np.bitwise_or.reduce(d, axis=1, keepdims=True).view(np.float16).astype(np.float32)
    scales = ((w[:, :, None] >> _THREES) & 7).reshape(-1, 16)
    high = nibbles_of(b[:, 32:48])
    codes = b[:, :32] | (high & 7).astype(np.uint16) << 8
    return _shifted(np.repeat(d * (2 * scales + 1), 2, axis=1), codes, (high & 8) != 0)


def _iq4_nl(b: U8) -> F32:
    """d f16, nibbles that stand for the 16 values above."""
    return half(b, 0) * _IQ4_VALUES[fields(b[:, 2:], 16, 4)]


def _iq4_xs(b: U8) -> F32:
    """d f16, 8 x 2 high bits of the scales, 8 x 4 low bits, 128 bytes of nibbles."""
    high = words(b[:, 2:4], "<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = (nibbles_of(b[:, 4:8]) | high << 4).astype(np.float32) - np.float32(32)
    d = half(b, 0) * scales
    q = _IQ4_VALUES[fields(b[:, 8:], 16, 4)].reshape(-1, 8, 32)
    return (d[:, :, None] * q).reshape(-1, 256)


DECODERS: dict[str, Callable[[U8], F32]] = {
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
