"""The header of a GGUF file, versions 2 and 3, little-endian, every number checked before use.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, counts, typed
key-value pairs, tensor infos, then the aligned data that the infos' offsets point into. Bounds
that the format leaves open: key 65535 bytes (its own), tensor name 1024 bytes, header 128 MiB,
2**19 tensors, 2**16 pairs, arrays of arrays two deep.
"""

import os
import re
import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import FileError
from .ggml_types import GGML, NOT_IN_FILES
from .gguf_cursor import ARRAY, SCALARS, STRING, Cursor, StringArray
from .source import SourceFile, quoted
from .storage import MAX_BYTES
from .tensors import Checkpoint, TensorInfo, join

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 1024
MAX_ARRAY_DEPTH = 2
MAX_INNER_ARRAYS = 1 << 16
MAX_TENSORS = 1 << 19
MAX_PAIRS = 1 << 16
MAX_SPLITS = 1024
# The least that one entry takes: a key of one byte with a one-byte value; a name of one byte with
# one dimension.
_PAIR_BYTES = 8 + 1 + 4 + 1
_INFO_BYTES = 8 + 1 + 4 + 8 + 4 + 8
_INFO_FORMATS = {dims: struct.Struct(f"<{dims}QIQ") for dims in range(1, 5)}
_SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def open_gguf(source: SourceFile) -> Checkpoint:
    """The tensors of one file; takes over `source` and closes it when the header is refused."""
    try:
        tensors, metadata = read_header(source)
    except BaseException:
        source.close()
        raise
    return Checkpoint(source.path, "gguf", [source], tensors, metadata)


def split_number(name: str) -> int:
    """The part that a file's name says it is ("x-00002-of-00003.gguf": 2), or 0."""
    match = _SPLIT_NAME.fullmatch(name)
    return int(match[2]) if match else 0


def open_gguf_splits(
    path: str, folders: Sequence[str], first_folders: Sequence[str] | None = None
) -> Checkpoint:
    """The file at `path` and, if it is the first of a split set, all the others beside it.

    Parts are found by name (`x-00001-of-00003.gguf`) and must agree with the `split.*` keys that
    each of them carries. Links may lead into `folders`, and for the first file, which the user
    may have named, into `first_folders` (None: anywhere).
    """
    first = open_gguf(SourceFile(path, "gguf", first_folders))
    parts = [first]
    try:
        count = first.metadata.get("split.count", 1)
        if type(count) is not int or not 0 <= count <= MAX_SPLITS:
            raise first.sources[0].error(f"split.count {count!r}; at most {MAX_SPLITS} are read")
        if count <= 1:
            return first
        folder, name = os.path.split(path)
        match = _SPLIT_NAME.fullmatch(name)
        if match is None or (int(match[2]), int(match[3])) != (1, count):
            raise first.sources[0].error(
                f"is one of {count} parts; a name ending in -00001-of-{count:05}.gguf is required"
            )
        for number in range(2, count + 1):
            other = os.path.join(folder, f"{match[1]}-{number:05}-of-{count:05}.gguf")
            parts.append(open_gguf(SourceFile(other, "gguf", folders)))
        _require_one_set(parts, count)
        return join(path, "gguf", parts)
    except BaseException:
        for part in parts:
            part.close()
        raise


def _require_one_set(parts: Sequence[Checkpoint], count: int) -> None:
    names: dict[str, str] = {}
    for number, part in enumerate(parts):
        source = part.sources[0]
        found = part.metadata.get("split.no"), part.metadata.get("split.count")
        if found != (number, count):
            raise source.error(
                f"split.no and split.count are {found[0]!r} and {found[1]!r}; "
                f"{number} and {count} are required"
            )
        # Parts hold these keys alone, or those of the first once more.
        for key, value in part.metadata.items():
            other = parts[0].metadata.get(key, value)
            if key != "split.no" and not _alike(value, other):
                raise source.error(
                    f"has metadata key {quoted(key)} {ascii(value)[:60]}; the first part's, "
                    f"{ascii(other)[:60]}, is required"
                )
        for name in part:
            if name in names:
                raise source.error(f"has tensor {quoted(name)}, which {names[name]} has too")
            names[name] = source.path
    total = parts[0].metadata.get("split.tensors.count", len(names))
    if total != len(names):
        raise (
            parts[0]
            .sources[0]
            .error(f"split.tensors.count is {total!r}; the {count} parts have {len(names)} tensors")
        )


def _alike(value: Any, other: Any) -> bool:
    if isinstance(value, np.ndarray) and isinstance(other, np.ndarray):
        return value.dtype == other.dtype and np.array_equal(value, other)
    if isinstance(value, StringArray) and isinstance(other, StringArray):
        return value.same(other)
    return type(value) is type(other) and bool(value == other)


def read_header(source: SourceFile) -> tuple[dict[str, TensorInfo], dict[str, Any]]:
    """Tensors in the order of their data, and the key-value pairs; FileError if broken."""
    cursor = Cursor(source)
    magic = cursor.take(4, "magic")
    if magic != MAGIC:
        raise source.error(f"begins with {magic!r}; {MAGIC!r} is required")
    _require_version(source, cursor.integer(4, "version"))
    tensor_count = cursor.integer(8, "tensor count")
    pair_count = cursor.integer(8, "key-value count")
    if tensor_count > MAX_TENSORS or pair_count > MAX_PAIRS:
        raise source.error(
            f"declares {tensor_count} tensors and {pair_count} key-value pairs; at most "
            f"{MAX_TENSORS} and {MAX_PAIRS} are read"
        )
    least = tensor_count * _INFO_BYTES + pair_count * _PAIR_BYTES
    if least > source.size - cursor.position:
        raise source.error(
            f"declares {tensor_count} tensors and {pair_count} key-value pairs, which take "
            f"{least} bytes; {source.size - cursor.position} follow"
        )
    metadata = _read_pairs(cursor, pair_count)
    infos = [_read_info(cursor) for _ in range(tensor_count)]
    alignment = _alignment(metadata, source)
    data_begin = -(-cursor.position // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for info in infos:
        if info.name in tensors:
            raise source.error(f"tensor {quoted(info.name)} stands twice in the header")
        tensors[info.name] = _placed(info, data_begin, alignment, source)
    ordered = sorted(tensors.values(), key=lambda t: t.offset)
    for before, after in pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise source.error(
                f"tensor {quoted(after.name)} begins at {after.offset} and overlaps "
                f"{quoted(before.name)}, which ends at {before.offset + before.nbytes}"
            )
    return {tensor.name: tensor for tensor in ordered}, metadata


def _require_version(source: SourceFile, version: int) -> None:
    if version in (2, 3):
        return
    if version & 0xFFFF == 0 and version:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        raise source.error(f"is big-endian GGUF version {swapped}; little-endian is required")
    raise source.error(f"GGUF version {version}; version 2 or 3 is required")


def _read_pairs(cursor: Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        cursor.context = ""
        key = cursor.text("key", MAX_KEY_BYTES)
        if not key:
            raise cursor.source.error(f"key before byte {cursor.position} is empty")
        if key in metadata:
            raise cursor.source.error(f"key {quoted(key)} stands twice")
        cursor.context = key
        metadata[key] = _read_value(cursor)
    cursor.context = ""
    return metadata


def _read_value(cursor: Cursor) -> Any:
    kind = cursor.integer(4, "type")
    if kind == STRING:
        return cursor.text("value", cursor.source.size)
    if kind == ARRAY:
        return _read_array(cursor, MAX_ARRAY_DEPTH)
    if kind in SCALARS:
        return cursor.scalar(kind, "value")
    raise cursor.error("value", f"has type {kind}; types 0 to 12 are read")


def _read_array(cursor: Cursor, depth: int) -> Any:
    kind = cursor.integer(4, "element type")
    count = cursor.integer(8, "element count")
    if kind == STRING:
        return cursor.strings(count, "value")
    if kind in SCALARS:
        return cursor.scalars(kind, count, "value")
    if kind != ARRAY:
        raise cursor.error("value", f"has elements of type {kind}; types 0 to 12 are read")
    if depth == 1:
        raise cursor.error("value", f"is nested deeper than {MAX_ARRAY_DEPTH} arrays")
    # An inner array takes a type and a count at least, and an object in memory.
    cursor.require(count * 12, "value")
    if count > MAX_INNER_ARRAYS:
        raise cursor.error("value", f"has {count} arrays; at most {MAX_INNER_ARRAYS} are read")
    return [_read_array(cursor, depth - 1) for _ in range(count)]


def _alignment(metadata: dict[str, Any], source: SourceFile) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise source.error(
            f"general.alignment is {ascii(value)[:40]}; a power of two up to {MAX_ALIGNMENT} "
            "is required"
        )
    return value


def _read_info(cursor: Cursor) -> TensorInfo:
    """One tensor info as it stands in the file: offset within the data, nothing placed yet."""
    cursor.context = ""
    name = cursor.text("tensor name", MAX_NAME_BYTES)

    def refuse(problem: str) -> FileError:
        return cursor.source.error(f"tensor {quoted(name)} {problem}")

    if not name:
        raise cursor.source.error(f"tensor name before byte {cursor.position} is empty")
    cursor.context = name
    dims = cursor.integer(4, "number of dimensions")
    if not 1 <= dims <= 4:
        raise refuse(f"has {dims} dimensions; 1 to 4 are read")
    form = _INFO_FORMATS[dims]
    *sizes, number, offset = form.unpack(cursor.take(form.size, "shape, type and offset"))
    shape = tuple(reversed(sizes))  # the file counts from the fastest axis, NumPy names it last
    storage = GGML.get(number)
    if storage is None:
        what = f" ({NOT_IN_FILES[number]})" if number in NOT_IN_FILES else ""
        raise refuse(f"has ggml type {number}{what}; read are {_known_types()}")
    if min(shape) < 1 or max(shape) > MAX_BYTES:
        raise refuse(f"has shape {list(shape)}; sizes from 1 to 2**63-1 are required")
    try:
        nbytes = storage.nbytes(shape)
    except ValueError as problem:
        raise refuse(str(problem)) from None
    return TensorInfo(name, storage.name, shape, nbytes, offset, cursor.source.path)


def _known_types() -> str:
    return " ".join(f"{number} {row.name}," for number, row in sorted(GGML.items())).rstrip(",")


def _placed(info: TensorInfo, data_begin: int, alignment: int, source: SourceFile) -> TensorInfo:
    if info.offset % alignment:
        raise source.error(
            f"tensor {quoted(info.name)} has offset {info.offset}; "
            f"a multiple of {alignment} is required"
        )
    begin = data_begin + info.offset
    if begin + info.nbytes > source.size:
        raise source.error(
            f"tensor {quoted(info.name)} ends at {begin + info.nbytes}, file ends at {source.size}"
        )
    return TensorInfo(info.name, info.dtype, info.shape, info.nbytes, begin, info.file)
