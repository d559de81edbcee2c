"""GGUF files made byte by byte, so that a test can break any one of them."""

import struct
from pathlib import Path

#: The data of one tensor of eight floats.
F32 = bytes(range(32))
BOOL, STRING, ARRAY = 7, 8, 9
FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return u64(len(data)) + data


def pair(key: bytes | str, kind: int, value: bytes) -> bytes:
    """A key-value pair; `value` is already in the file's form."""
    return text(key) + u32(kind) + value


def scalar(key: str, kind: int, value: object) -> bytes:
    return pair(key, kind, struct.pack("<" + FORMATS[kind], value))


def array(kind: int, count: int, body: bytes) -> bytes:
    return u32(kind) + u64(count) + body


def info(
    name: bytes | str = "t",
    shape: tuple[int, ...] = (8,),
    kind: int = 0,
    offset: int = 0,
    dims: int | None = None,
) -> bytes:
    """A tensor info; `shape` in the file's order, fastest axis first."""
    sizes = b"".join(u64(size) for size in shape)
    return text(name) + u32(len(shape) if dims is None else dims) + sizes + u32(kind) + u64(offset)


def gguf_file(
    pairs: list[bytes] | tuple[bytes, ...] = (),
    infos: list[bytes] | tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    alignment: int = 32,
    pair_count: int | None = None,
    info_count: int | None = None,
) -> bytes:
    counts = (
        len(infos) if info_count is None else info_count,
        len(pairs) if pair_count is None else pair_count,
    )
    head = magic + u32(version) + u64(counts[0]) + u64(counts[1]) + b"".join([*pairs, *infos])
    return head + bytes(-len(head) % alignment if infos else 0) + data


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
