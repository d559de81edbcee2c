"""How elements lie in a file: one row for each dtype of safetensors (GGUF adds its own types)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

# Larger counts do not fit the signed 64-bit sizes that NumPy and the kernels use.
MAX_BYTES = 2**63 - 1
MAX_DIMS = 64


@dataclass(frozen=True, slots=True)
class Storage:
    """`block` neighbouring elements of the last axis take `block_bytes` bytes.

    `dtype` is the NumPy dtype of the elements, or None where only blocks can be viewed.
    """

    name: str
    block: int
    block_bytes: int
    dtype: np.dtype[np.generic] | None

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor; ValueError if rows do not divide into blocks or the size overflows.

        The exception carries what was found and what is wanted, without naming the tensor.
        """
        if self.block > 1 and (not shape or shape[-1] % self.block):
            row = shape[-1] if shape else 1
            raise ValueError(
                f"has rows of {row} elements; {self.name} is stored {self.block} at a time"
            )
        # An empty axis must not hide the others: NumPy refuses [0, 2**62, 2**62] too.
        if math.prod(max(size, 1) for size in shape) > MAX_BYTES // max(self.block_bytes, 16):
            raise ValueError("has a shape whose size overflows 64 bits")
        return math.prod(shape) // self.block * self.block_bytes


def _plain(name: str, dtype: object) -> Storage:
    made = np.dtype(dtype)  # type: ignore[call-overload]
    return Storage(name, 1, made.itemsize, made)


SAFETENSORS: dict[str, Storage] = {
    row.name: row
    for row in (
        _plain("F64", "<f8"),
        _plain("F32", "<f4"),
        _plain("F16", "<f2"),
        _plain("BF16", ml_dtypes.bfloat16),
        _plain("I64", "<i8"),
        _plain("I32", "<i4"),
        _plain("I16", "<i2"),
        _plain("I8", "i1"),
        _plain("U64", "<u8"),
        _plain("U32", "<u4"),
        _plain("U16", "<u2"),
        _plain("U8", "u1"),
        _plain("BOOL", "?"),
        _plain("C64", "<c8"),
        _plain("F8_E4M3", ml_dtypes.float8_e4m3fn),
        _plain("F8_E5M2", ml_dtypes.float8_e5m2),
        _plain("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz),
        _plain("F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz),
        _plain("F8_E8M0", ml_dtypes.float8_e8m0fnu),
        # Two a byte, the first in the low nibble; read into one byte an element.
        Storage("F4", 2, 1, np.dtype(ml_dtypes.float4_e2m1fn)),
    )
}
