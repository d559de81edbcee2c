"""Writing GGUF version 3, one tensor in memory at a time, and never half a file under its name."""

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .ggml_types import GGML
from .gguf import DEFAULT_ALIGNMENT, MAGIC
from .gguf_cursor import ARRAY, SCALARS, STRING, StringArray
from .source import Array, quoted
from .strict_json import is_text
from .target import replacing, write_all

_NUMBERS = {row.name: number for number, row in GGML.items()}
_KINDS = {np.dtype(dtype): kind for kind, dtype in SCALARS.items()}
# The name's bytes that every version of llama.cpp reads (GGML_MAX_NAME, its zero included).
MAX_NAME_BYTES = 63
# What a file is to hold: ggml type by its name ("Q4_K"), and shape in NumPy's order.
GgufSpecs = Mapping[str, tuple[str, Sequence[int]]]


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    specs: GgufSpecs,
    arrays: Iterable[tuple[str, Array]],
) -> None:
    """Write the tensors that `specs` announces, taking them from `arrays` one at a time.

    `arrays` yields every name once, in any order: arrays of the type's own dtype and shape, for
    quantised types the uint8 blocks [..., bytes of a row]. Metadata: a NumPy scalar or array
    keeps its dtype, of Python's own numbers bool is a bool, int the first of uint32, int32,
    uint64, int64 that holds it (what llama.cpp expects of sizes) and float a float32; str and
    sequences of str are strings. ValueError or TypeError for what does not fit; then nothing is
    left behind and a file that was there before stays as it was.
    """
    head, offsets, end = _layout(metadata, specs)
    pending = dict(offsets)
    with replacing(os.fsdecode(path)) as fd:
        write_all(fd, head, 0)
        os.truncate(fd, end)  # the padding reads as zeros
        for name, array in arrays:
            if name not in pending:
                fault = "twice" if name in offsets else "though not announced"
                raise ValueError(f"[write_gguf] tensor {quoted(name)} came {fault}")
            write_all(fd, _stored_bytes(name, np.asarray(array), *specs[name]), pending.pop(name))
        if pending:
            raise ValueError(f"[write_gguf] tensor {quoted(min(pending))} did not come")


def _layout(metadata: Mapping[str, Any], specs: GgufSpecs) -> tuple[bytes, dict[str, int], int]:
    """(the bytes before the data, where each tensor begins, where the file ends)."""
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if alignment < 8 or alignment & (alignment - 1):
        raise ValueError(
            f"[write_gguf] general.alignment is {alignment}; a power of two from 8 is required"
        )
    head = bytearray(MAGIC + struct.pack("<IQQ", 3, len(specs), len(metadata)))
    for key, value in metadata.items():
        head += _text(key, "key") + _value(key, value)
    begins: dict[str, int] = {}
    position = 0
    for name, (type_name, shape) in specs.items():
        number = _NUMBERS.get(type_name)
        if number is None:
            known = " ".join(_NUMBERS)
            raise ValueError(f"[write_gguf] {quoted(name)} is {type_name}; known are {known}")
        if not 1 <= len(shape) <= 4 or min(shape) < 1:
            raise ValueError(
                f"[write_gguf] tensor {quoted(name)} has shape {list(shape)}; 1 to 4 sizes from 1 "
                "are required"
            )
        try:
            nbytes = GGML[number].nbytes(shape)
        except ValueError as problem:
            raise ValueError(f"[write_gguf] tensor {quoted(name)} {problem}") from None
        if len(name.encode()) > MAX_NAME_BYTES:
            raise ValueError(
                f"[write_gguf] tensor name {quoted(name)} has {len(name.encode())} bytes; "
                f"at most {MAX_NAME_BYTES} are read everywhere"
            )
        sizes = reversed([int(size) for size in shape])
        head += _text(name, "tensor name") + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}QIQ", *sizes, number, position)
        begins[name] = position
        position += -(-nbytes // alignment) * alignment
    head += bytes(-len(head) % alignment)
    offsets = {name: len(head) + begin for name, begin in begins.items()}
    return bytes(head), offsets, len(head) + position


def _text(value: object, what: str) -> bytes:
    if not isinstance(value, str) or not is_text(value) or (what != "value" and not value):
        raise TypeError(f"[write_gguf] {what} is {ascii(value)[:80]}; text is required")
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any) -> bytes:
    """The type and the bytes of a metadata value."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value, "value")
    if isinstance(value, (bool, int, float, np.generic)):
        scalar = _scalar(key, value)
        return struct.pack("<I", _KINDS[scalar.dtype]) + scalar.tobytes()
    if isinstance(value, StringArray):
        value = list(value)
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        body = b"".join(_text(item, "value") for item in value)
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + body
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype in _KINDS:
        kind = _KINDS[value.dtype]
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + value.tobytes()
    raise TypeError(
        f"[write_gguf] value of {quoted(key)} is {ascii(value)[:80]}; a number, text, a list of "
        "texts or a one-dimensional array of numbers is required"
    )


def _scalar(key: str, value: Any) -> np.generic:
    if isinstance(value, np.generic):
        if value.dtype not in _KINDS:
            raise TypeError(f"[write_gguf] value of {quoted(key)} has dtype {value.dtype}")
        return value
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, float):
        return np.float32(value)
    for dtype in (np.uint32, np.int32, np.uint64, np.int64):
        if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
            return dtype(value)
    raise ValueError(f"[write_gguf] value of {quoted(key)} is {value}; 64 bits are required")


def _stored_bytes(name: str, array: Array, type_name: str, shape: Sequence[int]) -> memoryview:
    storage = GGML[_NUMBERS[type_name]]
    row = shape[-1] // storage.block * storage.block_bytes
    wanted = tuple(shape) if storage.dtype is not None else (*shape[:-1], row)
    dtype = storage.dtype or np.dtype(np.uint8)
    if array.dtype != dtype or array.shape != wanted:
        raise ValueError(
            f"[write_gguf] tensor {quoted(name)} is {array.dtype} {list(array.shape)}; "
            f"{dtype} {list(wanted)} is required for {type_name} {list(shape)}"
        )
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
