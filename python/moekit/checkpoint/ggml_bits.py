"""The bit fields that ggml's blocks are made of; arrays are uint8 [blocks, bytes]."""

from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

# E2M1 (4-bit float) times two, by code: integers, as ggml stores them.
E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def half(b: U8, at: int) -> F32:
    """float32 [blocks, 1]: the float16 at byte `at`."""
    return np.ascontiguousarray(b[:, at : at + 2]).view("<f2").astype(np.float32)


def words(b: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """The bytes of each block as wider little-endian integers."""
    return np.ascontiguousarray(b).view(dtype)


def fields(b: U8, run: int, bits: int) -> U8:
    """Fields of `bits` bits, lowest first, taken over `run` bytes at a time.

    Each `run` bytes yield all their lowest fields, then all their next ones, and so on:
    uint8 [blocks, bytes * 8 / bits].
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    split = (b.reshape(len(b), -1, 1, run) >> shifts) & np.uint8(2**bits - 1)
    return split.reshape(len(b), -1)


def bits_of(b: U8) -> U8:
    """uint8 [blocks, bytes * 8]: the bits of each byte in turn, lowest first."""
    return np.unpackbits(np.ascontiguousarray(b), axis=1, bitorder="little")


def quarters_of(b: U8) -> U8:
    """uint8 [blocks, bytes * 4]: the lowest two bits of every byte, then the next two."""
    return fields(b, b.shape[1], 2)


def nibbles_of(b: U8) -> U8:
    """uint8 [blocks, bytes * 2]: low and high nibble of each byte in turn."""
    return fields(b, 1, 4)


def six_bit_pairs(b: U8) -> tuple[F32, F32]:
    """The 8 scales and 8 mins that Q4_K and Q5_K pack into 12 bytes: float32 [blocks, 8] each.

    Bytes 0-3 hold scales 0-3, bytes 4-7 mins 0-3 (low 6 bits); bytes 8-11 hold the nibbles of
    scales and mins 4-7, whose upper two bits are the top bits of bytes 0-7.
    """
    d, m, rest = b[:, :4], b[:, 4:8], b[:, 8:]
    scale = np.concatenate([d & 0x3F, (rest & 0x0F) | ((d >> 2) & 0x30)], axis=1)
    low = np.concatenate([m & 0x3F, (rest >> 4) | ((m >> 2) & 0x30)], axis=1)
    return scale.astype(np.float32), low.astype(np.float32)
