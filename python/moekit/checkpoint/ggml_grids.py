"""The grids of ggml's IQ types: the points that a code stands for. The core has the numbers."""

from functools import cache

import numpy as np

from .. import _core
from .ggml_bits import F32, U8


@cache
def grid(name: str) -> F32:
    """float32 [points, 4 or 8] of one grid."""
    points: F32 = _core.ggml_grid(name.lower()).astype(np.float32)
    return points / np.float32(8) if name == "IQ1" else points


@cache
def sign_bytes() -> U8:
    """uint8 [128]: seven signs and, in the top bit, the eighth that makes their number even."""
    codes = np.arange(128, dtype=np.uint8)
    parity = np.unpackbits(codes[:, None], axis=1).sum(axis=1, dtype=np.uint8) & 1
    signs: U8 = codes | (parity << 7)
    return signs
