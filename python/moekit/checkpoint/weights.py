"""A checkpoint's weights by the names of the unquantised model; only what is asked for is read."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..errors import MissingTensorError
from .ggml_types import STORAGE
from .pieces import ALL, Piece, span_of
from .source import Array, quoted
from .tensors import Checkpoint

# The packed format of each float dtype of a file.
KEPT_DTYPES = {"F32": "f32", "BF16": "bf16", "F16": "f16", "F64": "f32"}
Range = tuple[int, int]
# Matrices whose outputs lie along their rows are read in bands of columns of about so many bytes,
# or more where the file's, shifted so far, are more.
_BAND_BYTES = 4 << 20
_BAND_SHARE = 7


@dataclass(frozen=True, slots=True)
class WeightInfo:
    """A weight: `scheme` is plain, ggml, fp8, fp4, mxfp4, gptq or awq; `parts` its stored tensors.

    The roles in `parts` are those of the arguments of the functions in `hf_quant`.
    """

    name: str
    scheme: str
    shape: tuple[int, ...]
    parts: Mapping[str, str]


class Weights(Mapping[str, Array]):
    """Weights by the names of the unquantised model, whatever the file calls and stores them.

    `weights[name]` is the tensor as stored, or float32 where it is stored quantised. What a model's
    part takes of it is asked for as a `Piece`, of which no more is read than it needs: `take` gives
    its values, `formats` says which packed formats hold it, and `blocks` gives its bytes for
    `ops.pack_blocks` where that loses nothing.
    """

    def __init__(self, checkpoint: Checkpoint, weights: Mapping[str, WeightInfo]) -> None:
        self.checkpoint = checkpoint
        self._weights = weights
        self._band_bytes = max(_BAND_BYTES, checkpoint.nbytes >> _BAND_SHARE)
        # Columns that were read last, and where they lie: their neighbours come next.
        self._band: tuple[tuple[object, ...], int, int, Array] | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def info(self, name: str) -> WeightInfo:
        """Shape, scheme and stored parts; nothing is read."""
        try:
            return self._weights[name]
        except KeyError:
            found = self.checkpoint
            raise MissingTensorError(
                f"[{found.format}] {found.path}: has no tensor {quoted(str(name))}"
            ) from None

    def dtype(self, name: str) -> np.dtype[Any] | None:
        """What a plain tensor is stored as, None for one that is stored quantised."""
        info = self.info(name)
        if info.scheme != "plain":
            return None
        return STORAGE[self.checkpoint.info(info.parts["weight"]).dtype].dtype

    def __getitem__(self, name: str) -> Array:
        return self._read(self.info(name), lambda part: self.checkpoint[part])

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """`weights[name][start:stop]`; of matrices and of banks [E, ...] only that is read."""
        info = self.info(name)
        if not info.shape or not 0 <= start <= stop <= info.shape[0]:
            raise ValueError(
                f"[read_rows] rows {start}:{stop} of {quoted(name)}; it is {list(info.shape)}"
            )
        if len(info.shape) == 2:
            return self._rows(info, None, start, stop)
        return self._read(info, lambda part: self.checkpoint.read_rows(part, start, stop))

    def take(self, piece: Piece) -> Array:
        """A piece [N, K] in the stored float dtype, or float32; C-contiguous."""
        info = self.info(piece.name)
        if piece.cols == ALL:
            first, last, step = span_of(piece.rows, info.shape[-2])
            values = self._rows(info, piece.expert, first, last)[step]
        else:
            top, bottom, row_step = span_of(piece.rows, info.shape[-2])
            first, last, step = span_of(piece.cols, info.shape[-1])
            found = self._columns(info, piece.expert, (top, bottom), (first, last))
            values = found[row_step, step]
        return np.ascontiguousarray(values.T if piece.transposed else values)

    def formats(self, piece: Piece) -> tuple[str, ...]:
        """Packed formats for a piece, the one nearest to the file first; nothing is rounded in it
        where `blocks` gives bytes for it or it is a float type."""
        info = self.info(piece.name)
        stored = self.checkpoint.info(info.parts["weight"]).dtype
        return (KEPT_DTYPES.get(stored, "f32"),)

    def blocks(self, piece: Piece, format: str) -> Array | None:
        """The bytes of a piece for `ops.pack_blocks`, uint8 [N, ...]; None if there are none that
        mean the same in `format`."""
        return None

    def _read(self, info: WeightInfo, read: Callable[[str], Array]) -> Array:
        return read(info.parts["weight"])

    def _rows(self, info: WeightInfo, expert: int | None, start: int, stop: int) -> Array:
        """Rows `start:stop` of a matrix, or of entry `expert` of a bank: values [n, K]."""
        return self._read(info, lambda part: self.checkpoint.read_rows(part, start, stop, expert))

    def _columns(self, info: WeightInfo, expert: int | None, rows: Range, cols: Range) -> Array:
        """Some rows and columns of a matrix, or of entry `expert` of a bank: values [n, k]."""
        return self._stored_columns(info.parts["weight"], expert, rows, cols)

    def _stored_columns(self, part: str, expert: int | None, rows: Range, cols: Range) -> Array:
        """Some rows and columns of a stored matrix; they are kept for the columns that follow."""
        key = (part, expert, rows)
        band = self._band
        if band is None or band[0] != key or not band[1] <= cols[0] <= cols[1] <= band[2]:
            band = self._band = None  # before the next one is read
            info = self.checkpoint.info(part)
            column_bytes = (rows[1] - rows[0]) * info.nbytes // max(1, prod(info.shape))
            width = max(cols[1] - cols[0], self._band_bytes // max(1, column_bytes))
            first, last = 0, info.shape[-1]
            if width < last:
                first, last = cols[0], min(cols[0] + width, last)
            values = self.checkpoint.read_columns(part, (first, last), rows, expert)
            band = self._band = (key, first, last, values)
        return band[3][:, cols[0] - band[1] : cols[1] - band[1]]
