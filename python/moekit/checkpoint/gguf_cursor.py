"""Walking the header of a GGUF file: no byte is taken before it is known to be there."""

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
import numpy.typing as npt

from ..errors import FileError
from .source import Array, SourceFile, quoted

# Key-value pairs and tensor infos together; the largest real ones (vocabulary and merges of
# 260k tokens) take 20 MB.
MAX_HEADER_BYTES = 128 << 20
_FIRST_READ_BYTES = 256 << 10

# GGUF's value types (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
BOOL, STRING, ARRAY = 7, 8, 9
SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    BOOL: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_FORMATS = {4: struct.Struct("<I"), 8: struct.Struct("<Q")}
_SCALAR_FORMATS = {
    kind: struct.Struct("<" + form) for kind, form in zip(SCALARS, "BbHhIifBQqd", strict=True)
}


class StringArray(Sequence[str]):
    """The strings of a GGUF array, decoded one by one when they are asked for.

    A vocabulary stays a few megabytes of bytes until it is used. Bytes that are not UTF-8 are a
    FileError that names the array and the index; `raw(i)` gives them as they are.
    """

    def __init__(self, key: str, path: str, data: bytes, starts: npt.NDArray[np.int64]) -> None:
        # String i lies between starts[i] and starts[i + 1] - 8: the next length comes between.
        self._key, self._path = key, path
        self._data, self._starts = data, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def raw(self, index: int) -> bytes:
        """The bytes of one string."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"[gguf] {self._key}: index {index}; it has {count} strings")
        at = index % count
        return self._data[self._starts[at] : self._starts[at + 1] - 8]

    def same(self, other: "StringArray") -> bool:
        """Whether both hold the same strings."""
        return len(self) == len(other) and self._data == other._data

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._decoded(self.raw(index), index)

    def __iter__(self) -> Iterator[str]:
        data = self._data
        for index, (start, after) in enumerate(pairwise(self._starts.tolist())):
            yield self._decoded(data[start : after - 8], index)

    def _decoded(self, data: bytes, index: int) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FileError(
                f"[gguf] {self._path}: string {index} of {quoted(self._key)} is not UTF-8"
            ) from error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} strings of {self._key}>"


class Cursor:
    """A position in the header; every `take` is checked against the end of the file first."""

    def __init__(self, source: SourceFile) -> None:
        self.source = source
        self.position = 0
        # The key or tensor that is being read, for messages; put together only when one is due.
        self.context = ""
        self._limit = min(source.size, MAX_HEADER_BYTES)
        self._data = b""
        self._extend(min(self._limit, _FIRST_READ_BYTES))

    def _extend(self, end: int) -> None:
        """Have the header up to `end` (within the limit) in memory, doubling what is there."""
        held = len(self._data)
        if end > held:
            end = min(self._limit, max(end, 2 * held))
            self._data += bytes(self.source.read(held, end - held))

    def error(self, what: str, problem: str) -> FileError:
        """The exception that says `problem` of `what`, a part of the current key or tensor."""
        owner = f" of {quoted(self.context)}" if self.context else ""
        return self.source.error(f"{what}{owner} {problem}")

    def require(self, nbytes: int, what: str) -> None:
        """FileError unless `nbytes` more bytes lie within the file and the header's limit."""
        end = self.position + nbytes
        if end > self._limit:
            at = f"at byte {self.position} takes"
            if self._limit < self.source.size:
                raise self.error(
                    what, f"{at} the header past {self._limit} bytes; no more are read"
                )
            raise self.error(what, f"{at} {nbytes} bytes, file ends at {self.source.size}")
        self._extend(end)

    def take(self, nbytes: int, what: str) -> bytes:
        """The next `nbytes` bytes."""
        self.require(nbytes, what)
        start, self.position = self.position, self.position + nbytes
        return self._data[start : self.position]

    def integer(self, nbytes: int, what: str) -> int:
        """An unsigned integer of 4 or 8 bytes."""
        value: int = _FORMATS[nbytes].unpack(self.take(nbytes, what))[0]
        return value

    def text(self, what: str, limit: int) -> str:
        """A string of at most `limit` bytes, UTF-8."""
        start = self.position
        length = self.integer(8, what)
        if length > limit:
            raise self.error(what, f"at byte {start} has {length} bytes; at most {limit} are read")
        data = self.take(length, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(what, f"at byte {start} is not UTF-8") from error

    def scalar(self, kind: int, what: str) -> bool | int | float:
        """One number or bool."""
        form = _SCALAR_FORMATS[kind]
        value: bool | int | float = form.unpack(self.take(form.size, what))[0]
        if kind == BOOL:
            if value > 1:
                raise self.error(what, f"holds the byte {value}; 0 or 1 is required")
            return bool(value)
        return value

    def scalars(self, kind: int, count: int, what: str) -> Array:
        """`count` numbers or bools as an array of their own dtype."""
        dtype = np.dtype(SCALARS[kind])
        self.require(count * dtype.itemsize, what)
        values = np.frombuffer(self._data, dtype, count, self.position).copy()
        if kind == BOOL and count and values.view(np.uint8).max() > 1:
            found = values.view(np.uint8).max()
            raise self.error(what, f"holds the byte {found}; 0 or 1 is required")
        self.position += count * dtype.itemsize
        return values

    def strings(self, count: int, what: str) -> StringArray:
        """`count` strings; each takes 8 bytes at least, so the count is checked before."""
        self.require(count * 8, what)
        first = self.position
        # The loop of the whole reader: 200,000 times for a vocabulary, hence so plain.
        unpack, data, held = _FORMATS[8].unpack_from, self._data, len(self._data)
        starts = np.empty(count + 1, np.int64)
        position = first
        for index in range(count):
            if position + 8 > held:
                self.position = position
                self.require(8, f"{what}, string {index},")
                data, held = self._data, len(self._data)
            (length,) = unpack(data, position)
            position += 8
            starts[index] = position
            if length > self._limit - position:
                self.position = position
                self.require(length, f"{what}, string {index},")
            position += length
        starts[count] = position + 8
        self.position = first
        data = self.take(position - first, what)
        return StringArray(self.context, self.source.path, data, starts - first)
