"""Stored FP8 matrices, or parts of them, as the bytes of the core's `fp8`: nothing is rounded.

The core keeps a scale for each row and 128 columns. A checkpoint's scales hold for rectangles
(DeepSeek-V3: 128 by 128, cut at the edges), so rows may be cut anywhere, and columns, or the rows
of what is transposed, where a run of 128 meets one scale.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .pieces import Piece
from .source import Array

Indices = npt.NDArray[np.int64]
_RUN = 128


def _places(size: int, part: slice) -> Indices:
    return np.arange(size, dtype=np.int64)[part]


def _run_starts(shape: Sequence[int], block: Sequence[int], piece: Piece) -> Indices | None:
    """Where along the stored axis the runs of 128 columns begin; None if one has two scales."""
    axis = 0 if piece.transposed else 1
    places = _places(shape[axis], piece.rows if piece.transposed else piece.cols)
    scales = places // block[axis]
    starts = np.arange(0, len(places), _RUN)
    if len(places) == 0 or (np.repeat(scales[starts], _RUN)[: len(places)] != scales).any():
        return None
    return places[starts]


def holds_runs(shape: Sequence[int], block: Sequence[int], piece: Piece) -> bool:
    """True where the core's `fp8` holds a piece of a matrix [N, K] with scales for `block`."""
    return _run_starts(shape, block, piece) is not None


def piece_blocks(
    codes: Array, scales: npt.NDArray[np.float32], block: Sequence[int], piece: Piece
) -> npt.NDArray[np.uint8] | None:
    """uint8 [n, k / 128 * 132] for `ops.pack_blocks`: a float32 scale, then 128 codes.

    `codes` uint8 [N, K], `scales` [ceil(N / block[0]), ceil(K / block[1])]. None where a run of 128
    columns meets more than one scale.
    """
    starts = _run_starts(codes.shape, block, piece)
    if starts is None:
        return None
    if piece.transposed:
        rows = _places(codes.shape[1], piece.cols)
        grid = scales.T[rows // block[1]][:, starts // block[0]]
    else:
        rows = _places(codes.shape[0], piece.rows)
        grid = scales[rows // block[0]][:, starts // block[1]]
    values = piece.of(codes)
    count, cols = values.shape
    out = np.zeros((count, len(starts), 4 + _RUN), np.uint8)
    out[:, :, :4] = np.ascontiguousarray(grid, np.float32).view(np.uint8).reshape(count, -1, 4)
    whole = cols // _RUN
    out[:, :whole, 4:] = values[:, : whole * _RUN].reshape(count, whole, _RUN)
    if cols % _RUN:
        out[:, whole, 4 : 4 + cols % _RUN] = values[:, whole * _RUN :]
    return out.reshape(count, -1)
