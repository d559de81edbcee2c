"""A checkpoint as a mapping from tensor name to array; tensors are read when asked for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import TracebackType
from typing import Any, Self, TypeVar

import ml_dtypes
import numpy as np

from ..errors import FileError, MissingTensorError
from .ggml_dequant import dequantize
from .ggml_types import STORAGE
from .source import Array, SourceFile, aligned_empty, quoted
from .storage import Storage

T = TypeVar("T")

_PIECE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says of a tensor: all of it checked against the file.

    `dtype` is the format's own name ("BF16", "F8_E4M3", "Q4_K"), `shape` is in NumPy's order,
    `offset` is the first byte in `file`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int
    file: str


class Checkpoint(Mapping[str, Array]):
    """Tensors of one or several open files, by name, in the order of their data.

    `ckpt[name]` reads that tensor into a fresh array; nothing is cached. Reading is safe from
    several threads. Use it as a context manager, or call `close()`.
    """

    def __init__(
        self,
        path: str,
        format: str,
        sources: Sequence[SourceFile],
        tensors: Mapping[str, TensorInfo],
        metadata: Mapping[str, Any],
    ) -> None:
        self.path = path
        self.format = format
        self.metadata = metadata
        self.sources = tuple(sources)
        self._sources = {source.path: source for source in sources}
        self._tensors = dict(tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __repr__(self) -> str:
        return f"<{self.format} checkpoint {self.path}: {len(self)} tensors>"

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(info.nbytes for info in self._tensors.values())

    def info(self, name: str) -> TensorInfo:
        """The header's row of a tensor; nothing is read. MissingTensorError if there is none."""
        try:
            return self._tensors[name]
        except KeyError:
            raise MissingTensorError(
                f"[{self.format}] {self.path}: has no tensor {quoted(str(name))}"
            ) from None

    def field(self, key: str, kind: type[T], default: T | None = None) -> T:
        """A metadata value of the Python type `kind`; an int also passes as a float.

        FileError if it has another type, or if it is missing and there is no `default`.
        """
        if key not in self.metadata and default is not None:
            return default
        if key not in self.metadata:
            raise self.error(None, f"has no metadata key {quoted(key)}")
        value = self.metadata[key]
        if kind is float and type(value) is int:
            value = float(value)
        # A bool is an int to Python, and not to a file.
        if not isinstance(value, kind) or (type(value) is bool and kind is not bool):
            found = f"{type(value).__name__} {ascii(value)[:60]}"
            text = f"metadata key {quoted(key)} is {found}; {kind.__name__} is required"
            raise self.error(None, text)
        return value

    def error(self, info: TensorInfo | None, problem: str) -> FileError:
        """The exception that says `problem` of a tensor, or of the checkpoint as a whole."""
        if info is None:
            return FileError(f"[{self.format}] {self.path}: {problem}")
        return self._sources[info.file].error(f"tensor {quoted(info.name)} {problem}")

    def __getitem__(self, name: str) -> Array:
        """The whole tensor: dtype as stored, float32 for ggml's quantised types.

        FileError if the file has become shorter meanwhile.
        """
        return self._decoded(self.info(name), 0, None, None)

    def read_rows(self, name: str, start: int, stop: int, expert: int | None = None) -> Array:
        """Rows `start:stop` of the first axis, as `ckpt[name][start:stop]`, reading only those.

        With `expert`, those of one entry of a bank: `ckpt[name][expert][start:stop]`.
        """
        return self._decoded(self.info(name), start, stop, expert)

    def read_columns(
        self,
        name: str,
        columns: tuple[int, int],
        rows: tuple[int, int],
        expert: int | None = None,
    ) -> Array:
        """`ckpt[name][rows, columns]` of a matrix, or of entry `expert` of a bank of matrices.

        Only that is read, row by row: for matrices whose outputs lie along their rows.
        """
        info = self.info(name)
        storage = STORAGE[info.dtype]
        shape = info.shape if expert is None else info.shape[1:]
        (first, last), (start, stop) = columns, rows
        if len(shape) != 2 or storage.block != 1 or not 0 <= first <= last <= shape[1]:
            raise ValueError(
                f"[read_columns] columns {first}:{last} of tensor {quoted(name)}, {info.dtype} "
                f"{list(info.shape)}; a range of a plain matrix is required"
            )
        offset, _, _ = self._span(info, start, stop, expert)
        size = storage.block_bytes
        width = (last - first) * size
        raw = aligned_empty((stop - start) * width)
        target = raw.reshape(stop - start, width)
        self._sources[info.file].read_strided(offset + first * size, shape[1] * size, target)
        return _as_elements(raw, storage).reshape(stop - start, last - first)

    def blocks(
        self, name: str, start: int = 0, stop: int | None = None, expert: int | None = None
    ) -> Array:
        """The stored bytes of rows `start:stop` of the first axis: uint8 [rows, bytes of a row].

        A row is the last axis; all others are flattened. `expert` is that of `read_rows`. The bytes
        are those of the file.
        """
        info = self.info(name)
        offset, nbytes, shape = self._span(info, start, stop, expert)
        raw = aligned_empty(nbytes)
        self._sources[info.file].read_into(offset, raw.data)
        rows = prod(shape[:-1])
        storage = STORAGE[info.dtype]
        row_bytes = (shape[-1] if shape else 1) // storage.block * storage.block_bytes
        return raw.reshape(rows, row_bytes)

    def read_into(self, name: str, buffer: Any) -> None:
        """Fill `buffer` (writable, contiguous, of `info(name).nbytes` bytes) as stored."""
        info = self.info(name)
        # Arrays of ml_dtypes do not offer the buffer protocol themselves.
        plain = buffer.reshape(-1).view(np.uint8) if _is_contiguous_array(buffer) else buffer
        target = memoryview(plain)
        if target.readonly or not target.c_contiguous or target.nbytes != info.nbytes:
            state = "read-only" if target.readonly else f"{target.nbytes} bytes"
            raise ValueError(
                f"[read_into] buffer for {quoted(name)}: {state}; "
                f"{info.nbytes} writable contiguous bytes are required"
            )
        if info.nbytes:
            self._sources[info.file].read_into(info.offset, target.cast("B"))

    def close(self) -> None:
        """Close the files; what was read stays valid."""
        for source in self.sources:
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _span(
        self, info: TensorInfo, start: int, stop: int | None, expert: int | None
    ) -> tuple[int, int, tuple[int, ...]]:
        """(first byte, bytes, shape) of rows `start:stop` of the first axis, or of `expert`'s."""
        if expert is None and start == 0 and stop is None:
            return info.offset, info.nbytes, info.shape
        shape, before = info.shape, 0
        if expert is not None:
            if len(shape) < 2 or not 0 <= expert < shape[0]:
                raise ValueError(
                    f"[read_rows] entry {expert} of tensor {quoted(info.name)} {list(shape)}; "
                    "one of a bank is required"
                )
            shape = shape[1:]
            before = expert * prod(shape)
        if not shape:
            raise ValueError(f"[read_rows] tensor {quoted(info.name)} has no axis to slice")
        stop = shape[0] if stop is None else stop
        if not 0 <= start <= stop <= shape[0]:
            raise ValueError(
                f"[read_rows] rows {start}:{stop} of tensor {quoted(info.name)}; it has {shape[0]}"
            )
        storage = STORAGE[info.dtype]
        row = prod(shape[1:])
        begin, end = before + start * row, before + stop * row
        if begin % storage.block or end % storage.block:
            raise ValueError(
                f"[read_rows] rows {start}:{stop} of tensor {quoted(info.name)} cut a block; "
                f"{info.dtype} is stored {storage.block} elements at a time"
            )
        first = begin // storage.block * storage.block_bytes
        last = end // storage.block * storage.block_bytes
        return info.offset + first, last - first, (stop - start, *shape[1:])

    def _decoded(self, info: TensorInfo, start: int, stop: int | None, expert: int | None) -> Array:
        offset, nbytes, shape = self._span(info, start, stop, expert)
        storage = STORAGE[info.dtype]
        source = self._sources[info.file]
        if storage.dtype is None:
            return _read_dequantised(source, offset, nbytes, storage).reshape(shape)
        raw = aligned_empty(nbytes)
        source.read_into(offset, raw.data)
        if info.dtype == "BOOL" and nbytes and raw.max() > 1:
            # NumPy's own operations on such a "bool" disagree with each other.
            raise source.error(
                f"tensor {quoted(info.name)} holds the byte {raw.max()}; BOOL is 0 or 1"
            )
        return _as_elements(raw, storage).reshape(shape)


def join(path: str, format: str, parts: list[Checkpoint]) -> Checkpoint:
    """Several open checkpoints as one that owns their files; metadata of the first one wins."""
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, object] = {}
    for part in parts:
        tensors.update({name: part.info(name) for name in part})
        metadata = {**part.metadata, **metadata}
    sources = [source for part in parts for source in part.sources]
    return Checkpoint(path, format, sources, tensors, metadata)


def _is_contiguous_array(value: object) -> bool:
    return isinstance(value, np.ndarray) and bool(value.flags.c_contiguous)


def _read_dequantised(source: SourceFile, offset: int, nbytes: int, storage: Storage) -> Array:
    # Piece by piece, so that the stored bytes are never in memory as a whole beside the values.
    count = nbytes // storage.block_bytes
    out = aligned_empty(count * storage.block * 4).view(np.float32).reshape(count, storage.block)
    step = max(1, _PIECE_BYTES // storage.block_bytes)
    for first in range(0, count, step):
        piece = np.empty((min(step, count - first), storage.block_bytes), np.uint8)
        source.read_into(offset + first * storage.block_bytes, piece.reshape(-1).data)
        dequantize(piece, storage.name, out[first : first + step])
    return out


def _as_elements(raw: Array, storage: Storage) -> Array:
    if storage.name == "F4":
        out = aligned_empty(2 * raw.size)
        out[0::2] = raw & 15
        out[1::2] = raw >> 4
        return out.view(ml_dtypes.float4_e2m1fn)
    assert storage.dtype is not None
    return raw.view(storage.dtype)
