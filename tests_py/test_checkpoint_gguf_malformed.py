"""GGUF files that break one rule each."""

import os

import pytest
from gguf_bytes import (
    ARRAY,
    BOOL,
    F32,
    STRING,
    array,
    gguf_file,
    info,
    pair,
    scalar,
    text,
    u32,
    u64,
    write,
)

import moekit.checkpoint as checkpoint
from moekit.checkpoint import FileError

ONE = info()
DEEP = array(ARRAY, 1, array(ARRAY, 1, array(4, 1, u32(1))))
ENDLESS = (u32(ARRAY) + u64(1)) * 1000
REPEATED = [scalar("a", 4, 1), scalar("a", 4, 1)]


def one(*, shape=(8,), kind=0, offset=0, dims=None, name="t", data=F32, pairs=()) -> bytes:
    return gguf_file(pairs, [info(name, shape, kind, offset, dims)], data)


def two(offset: int, size: int = 64, kind: int = 0) -> bytes:
    return gguf_file([], [info("a", kind=kind), info("b", offset=offset)], bytes(size))


def valued(kind: int, value: bytes) -> bytes:
    return gguf_file([pair("k", kind, value)])


# Name -> (whole file, what the message must say).
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "magic at byte 0 takes 4 bytes, file ends at 0"),
    "three bytes": (b"GGU", "file ends at 3"),
    "magic only": (b"GGUF", "version at byte 4 takes 4 bytes"),
    "wrong magic": (gguf_file(magic=b"GGML"), "begins with b'GGML'; b'GGUF' is required"),
    "lower-case magic": (gguf_file(magic=b"gguf"), "begins with b'gguf'"),
    "version 0": (gguf_file(version=0), "GGUF version 0; version 2 or 3 is required"),
    "version 1": (gguf_file(version=1), "GGUF version 1;"),
    "version 4": (gguf_file(version=4), "GGUF version 4;"),
    "big-endian": (gguf_file(version=3 << 24), "is big-endian GGUF version 3"),
    "no counts": (b"GGUF" + u32(3), "tensor count at byte 8"),
    "half of the counts": (b"GGUF" + u32(3) + u64(0), "key-value count at byte 16"),
    "10^8 elements in 20 bytes": (
        b"GGUF" + u32(3) + u64(10**8) + u32(0),
        "key-value count at byte 16 takes 8 bytes, file ends at 20",
    ),
    "10^8 tensors": (gguf_file(info_count=10**8), "declares 100000000 tensors"),
    "2^64-1 tensors": (gguf_file(info_count=2**64 - 1), "declares 18446744073709551615 tensors"),
    "2^63 pairs": (gguf_file(pair_count=2**63), "and 9223372036854775808 key-value pairs"),
    "10^6 tensors that fit": (gguf_file(info_count=10**6), "at most 524288 and 65536 are read"),
    "70000 pairs that fit": (gguf_file(pair_count=70_000), "at most 524288 and 65536 are read"),
    "one pair too many": (gguf_file([scalar("a", 4, 1)], pair_count=2), "and 2 key-value pairs"),
    "one tensor too many": (
        gguf_file([], [ONE], F32 + bytes(64), info_count=2),
        "tensor name before byte|has .* dimensions",
    ),
    "key longer than the file": (
        gguf_file([u64(10**9) + b"k" + bytes(20)]),
        "key at byte 24 has 1000000000 bytes; at most 65535",
    ),
    "key of 2^64-1 bytes": (gguf_file([u64(2**64 - 1) + b"k" + bytes(20)]), "at most 65535"),
    "key past the end": (gguf_file([u64(1000) + b"k" + bytes(20)]), "key at byte 32 takes 1000"),
    "key empty": (gguf_file([pair("", 4, u32(1))]), "key before byte 32 is empty"),
    "key not utf-8": (gguf_file([pair(b"\xff", 4, u32(1))]), "key at byte 24 is not UTF-8"),
    "key twice": (gguf_file(REPEATED), "key 'a' stands twice"),
    "type 13": (valued(13, u32(1)), "value of 'k' has type 13; types 0 to 12 are read"),
    "type 2^32-1": (valued(2**32 - 1, u32(1)), "has type 4294967295"),
    "value cut": (gguf_file([text("key") + u32(10) + u32(1)]), "value of 'key' at byte"),
    "bool 2": (valued(BOOL, b"\2"), "value of 'k' holds the byte 2"),
    "bool array 255": (valued(ARRAY, array(BOOL, 2, b"\1\xff")), "holds the byte 255"),
    "string past the end": (valued(STRING, u64(9) + b"x"), "value of 'k' at byte .* takes 9 bytes"),
    "string of 10^12": (valued(STRING, u64(10**12)), "has 1000000000000 bytes; at most"),
    "string of 2^64-1": (valued(STRING, u64(2**64 - 1)), "at most"),
    "string not utf-8": (valued(STRING, text(b"\xc3\x28")), "value of 'k' at byte .* not UTF-8"),
    "array of 10^8 bytes": (valued(ARRAY, array(0, 10**8, b"x")), "takes 100000000 bytes"),
    "array of 2^61 u64": (valued(ARRAY, array(10, 2**61, b"")), "takes 18446744073709551616 bytes"),
    "array of 2^64-1 f64": (valued(ARRAY, array(12, 2**64 - 1, b"")), "takes 147573952589676412"),
    "array of type 13": (valued(ARRAY, array(13, 1, u32(1))), "elements of type 13"),
    "array cut": (valued(ARRAY, u32(4)), "element count of 'k' at byte"),
    "10^8 strings": (valued(ARRAY, array(STRING, 10**8, text("x"))), "takes 800000000 bytes"),
    "2^64-1 strings": (valued(ARRAY, array(STRING, 2**64 - 1, b"")), "takes 147573952589676412"),
    "one string too many": (
        valued(ARRAY, array(STRING, 2, text("x" * 20))),
        "value, string 1, of 'k' at byte .* takes 8 bytes",
    ),
    "string in an array past the end": (
        valued(ARRAY, array(STRING, 1, u64(2**63) + bytes(40))),
        "value, string 0, of 'k' at byte .* takes 9223372036854775808 bytes",
    ),
    "nested too deep": (valued(ARRAY, DEEP), "nested deeper than 2 arrays"),
    "nested without end": (valued(ARRAY, ENDLESS), "nested deeper than 2 arrays"),
    "10^8 inner arrays": (valued(ARRAY, array(ARRAY, 10**8, b"")), "takes 1200000000 bytes"),
    "alignment 0": (one(pairs=[scalar("general.alignment", 4, 0)]), "alignment is 0; a power of t"),
    "alignment 24": (one(pairs=[scalar("general.alignment", 4, 24)]), "alignment is 24"),
    "alignment 2^31": (one(pairs=[scalar("general.alignment", 4, 2**31)]), "is 2147483648"),
    "alignment negative": (one(pairs=[scalar("general.alignment", 5, -32)]), "is -32"),
    "alignment float": (one(pairs=[scalar("general.alignment", 6, 32.0)]), "is 32.0"),
    "alignment text": (one(pairs=[pair("general.alignment", STRING, text("32"))]), "is '32'"),
    "alignment true": (one(pairs=[scalar("general.alignment", BOOL, True)]), "is True"),
    "name empty": (one(name=""), "tensor name before byte 32 is empty"),
    "name not utf-8": (one(name=b"\xff"), "tensor name at byte 24 is not UTF-8"),
    "name too long": (one(name="x" * 1025), "has 1025 bytes; at most 1024"),
    "name past the end": (gguf_file([], [u64(1000) + bytes(40)]), "takes 1000 bytes, file ends"),
    "name twice": (gguf_file([], [ONE, info(offset=32)], F32 * 2), "'t' stands twice"),
    "0 dimensions": (one(shape=()), "has 0 dimensions"),
    "5 dimensions": (one(shape=(8, 1, 1, 1, 1)), "has 5 dimensions; 1 to 4"),
    "2^32-1 dimensions": (one(dims=2**32 - 1), "has 4294967295 dimensions"),
    "size 0": (one(shape=(0,)), r"has shape \[0\]"),
    "size 0 behind": (one(shape=(8, 0)), r"has shape \[0, 8\]"),
    "size 2^63": (one(shape=(2**63,)), r"has shape \[9223372036854775808\]"),
    "size 2^64-1": (one(shape=(2**64 - 1,)), "has shape"),
    "size overflow": (one(shape=(2**32, 2**32)), "overflows 64 bits"),
    "size overflow to 8": (one(shape=(2**62 + 2, 4)), "overflows 64 bits"),
    "size past the end": (one(shape=(9,)), "ends at .*, file ends at"),
    "size of a terabyte": (one(shape=(2**38,)), "ends at 1099511627840, file ends at 96"),
    "type unknown": (one(kind=99), "'t' has ggml type 99; read are 0 F32, 1 F16, 2 Q4_0"),
    "type removed": (one(kind=4), r"ggml type 4 \(Q4_2, removed in 2023\)"),
    "type repacked": (one(kind=31), r"ggml type 31 \(Q4_0_4_4, removed in 2024\)"),
    "type of activations": (one(kind=9), r"ggml type 9 \(Q8_1, a type of activations\)"),
    "ggml type 2^32-1": (one(kind=2**32 - 1), "ggml type 4294967295"),
    "row no multiple of the block": (one(shape=(33,), kind=2), "rows of 33 elements; Q4_0 is"),
    "row of K type": (one(shape=(128, 2), kind=12), "128 elements; Q4_K is stored 256 at a time"),
    "quantised past the end": (one(shape=(64,), kind=2), "ends at"),
    "offset not aligned": (one(offset=8, data=F32 * 2), "offset 8; a multiple of 32 is required"),
    "offset past the end": (one(offset=32), "ends at"),
    "offset 2^63": (one(offset=2**63), "ends at 9223372036854775904, file ends at 96"),
    "offset 2^64-32": (one(offset=2**64 - 32), "ends at 18446744073709551680"),
    "same offset": (two(0), "'b' begins at 96 and overlaps 'a', which ends at 128"),
    "overlap of a longer tensor": (two(32, 96, kind=28), "overlaps 'a'"),
    "data cut": (one(data=F32[:-1]), "ends at 96, file ends at 95"),
    "infos cut": (
        one(name="tensor")[:60],
        "shape, type and offset of 'tensor' at byte 42 takes 20 bytes",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file_is_refused_and_named(tmp_path, case):
    content, message = MALFORMED[case]
    path = write(tmp_path / "bad.gguf", content)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileError, match=message) as caught:
        checkpoint.open(path)
    assert str(caught.value).startswith(f"[gguf] {path}: ")
    assert len(os.listdir("/proc/self/fd")) == before


def test_header_beyond_the_limit(tmp_path):
    path = write(tmp_path / "x.gguf", valued(STRING, u64(1 << 30)))
    os.truncate(path, 1 << 31)  # the string's bytes are there, as a hole
    with pytest.raises(FileError, match="takes the header past 134217728 bytes"):
        checkpoint.open(path)


def test_file_that_shrinks_while_open(tmp_path):
    path = write(tmp_path / "x.gguf", two(32))
    with checkpoint.open(path) as ckpt:
        os.truncate(path, 96 + 40)
        assert ckpt["a"].shape == (8,)
        with pytest.raises(FileError, match="the file shrank: it ends at 136"):
            ckpt["b"]
