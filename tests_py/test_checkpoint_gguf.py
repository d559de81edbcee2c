"""GGUF: round trips with the published package, and files that break one rule each."""

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import gguf.quants
import ml_dtypes
import numpy as np
import pytest
from gguf_bytes import ARRAY, BOOL, STRING, array, gguf_file, info, pair, scalar, text, u32, u64

import moekit.checkpoint as checkpoint
from moekit.checkpoint import FileError, dequantize
from moekit.checkpoint.ggml_types import QUANTISED

F32 = bytes(range(32))  # the data of one tensor of 8 floats
ONE = info()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def published_file(path: Path) -> dict[str, np.ndarray]:
    """A file of the published writer with every kind of value; returns its plain tensors."""
    rng = np.random.default_rng(0)
    plain = {
        "f32": rng.normal(size=(3, 5)).astype(np.float32),
        "f16": rng.normal(size=(2, 3, 4)).astype(np.float16),
        "f64": rng.normal(size=7),
        "i8": rng.integers(-128, 128, (4, 2), np.int8),
        "i16": rng.integers(-9, 9, (2, 2, 2, 3)).astype(np.int16),
        "i32": rng.integers(-9, 9, 5).astype(np.int32),
        "i64": rng.integers(-9, 9, 5),
    }
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -30000)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_float32("f32", 0.5)
    writer.add_bool("yes", True)
    writer.add_string("text", "grüße")
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float64("f64", 1e300)
    writer.add_array("strings", ["", "a", "é\n", "x" * 300])
    writer.add_array("ints", [1, -2, 3])
    writer.add_array("floats", [0.5, 1.5])
    writer.add_array("bools", [True, False])
    for name, values in plain.items():
        writer.add_tensor(name, values)
    for name in ("Q4_0", "Q8_0", "BF16"):
        kind = gguf.GGMLQuantizationType[name]
        values = gguf.quants.quantize(rng.normal(size=(2, 4, 64)).astype(np.float32), kind)
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return plain


def test_published_writer(tmp_path):
    path = tmp_path / "x.gguf"
    plain = published_file(path)
    reader = gguf.GGUFReader(path)
    with checkpoint.open(path) as ckpt:
        assert ckpt.format == "gguf"
        assert set(ckpt) == {tensor.name for tensor in reader.tensors}
        for name, expected in plain.items():
            assert ckpt[name].dtype == expected.dtype
            assert ckpt[name].ctypes.data % 64 == 0
            np.testing.assert_array_equal(ckpt[name], expected)
        for tensor in reader.tensors:
            found = ckpt.info(tensor.name)
            assert (found.dtype, found.nbytes) == (tensor.tensor_type.name, tensor.n_bytes)
            assert found.offset == tensor.data_offset
            assert found.shape == tuple(tensor.shape.tolist())[::-1]
            assert ckpt.blocks(tensor.name).tobytes() == tensor.data.tobytes()
            if tensor.name in ("Q4_0", "Q8_0"):
                expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
                np.testing.assert_array_equal(ckpt[tensor.name], expected)
                np.testing.assert_array_equal(ckpt.read_rows(tensor.name, 1, 2), expected[1:2])
        assert ckpt["BF16"].dtype == np.dtype(ml_dtypes.bfloat16)
        metadata = dict(ckpt.metadata)
    strings = metadata.pop("strings")
    assert strings == ["", "a", "é\n", "x" * 300]
    assert (strings[-2], strings[1:3], strings.raw(2)) == ("é\n", ["a", "é\n"], "é\n".encode())
    with pytest.raises(IndexError, match="index 4; it has 4 strings"):
        strings[4]
    arrays = {key: metadata.pop(key) for key in ("ints", "floats", "bools")}
    assert {key: value.tolist() for key, value in arrays.items()} == {
        "ints": [1, -2, 3],
        "floats": [0.5, 1.5],
        "bools": [True, False],
    }
    assert (arrays["ints"].dtype, arrays["bools"].dtype) == (np.int32, np.bool_)
    assert metadata == {
        "general.architecture": "qwen3moe",
        "u8": 200,
        "i8": -100,
        "u16": 60000,
        "i16": -30000,
        "u32": 2**32 - 1,
        "i32": -(2**31),
        "f32": 0.5,
        "yes": True,
        "text": "grüße",
        "u64": 2**64 - 1,
        "i64": -(2**63),
        "f64": 1e300,
    }


@pytest.mark.parametrize("name", QUANTISED)
def test_every_quantised_type_in_a_bank_of_experts(tmp_path, name):
    row = QUANTISED[name]
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (3, 2, 2 * row.block_bytes), dtype=np.uint8)
    number = gguf.GGMLQuantizationType[name].value
    shape = (2 * row.block, 2, 3)
    content = gguf_file([], [info("bank", shape, number)], blocks.tobytes())
    with checkpoint.open(write(tmp_path / "x.gguf", content)) as ckpt:
        whole = ckpt["bank"]
        assert (whole.shape, whole.dtype) == (shape[::-1], np.float32)
        expected = dequantize(blocks.reshape(6, -1), name).reshape(shape[::-1])
        np.testing.assert_array_equal(whole, expected)
        for e in range(3):
            np.testing.assert_array_equal(ckpt.read_rows("bank", e, e + 1)[0], expected[e])
            np.testing.assert_array_equal(ckpt.blocks("bank", e, e + 1), blocks[e])
        raw = np.empty(blocks.shape, np.uint8)
        ckpt.read_into("bank", raw)
        np.testing.assert_array_equal(raw, blocks)


def test_fields_have_the_type_that_is_asked_for(tmp_path):
    pairs = [scalar("count", 4, 5), scalar("eps", 6, 0.5), scalar("on", BOOL, True)]
    pairs.append(pair("words", ARRAY, array(STRING, 1, text("x"))))
    with checkpoint.open(write(tmp_path / "x.gguf", gguf_file(pairs))) as ckpt:
        assert (ckpt.field("count", int), ckpt.field("count", float)) == (5, 5.0)
        assert (ckpt.field("eps", float), ckpt.field("on", bool)) == (0.5, True)
        assert ckpt.field("words", Sequence) == ["x"]
        assert (ckpt.field("gone", int, 3), ckpt.field("count", int, 3)) == (3, 5)
        for key, kind, message in (
            ("gone", int, "has no metadata key 'gone'"),
            ("eps", int, "metadata key 'eps' is float 0.5; int is required"),
            ("on", int, "metadata key 'on' is bool True; int is required"),
            ("on", float, "is bool True; float is required"),
            ("words", str, "is StringArray <1 strings of words>; str is required"),
        ):
            with pytest.raises(FileError, match=message):
                ckpt.field(key, kind)


def test_several_threads_read_one_checkpoint(tmp_path):
    data = np.random.default_rng(5).integers(0, 256, 64 * 1000, dtype=np.uint8)
    infos = [info(f"t{i}", (250,), 0, 1000 * i + 24 * i) for i in range(60)]
    pairs = [scalar("general.alignment", 4, 1024)]
    content = gguf_file(pairs, infos, data.tobytes(), alignment=1024)
    with checkpoint.open(write(tmp_path / "x.gguf", content)) as ckpt:
        names = list(ckpt) * 20
        with ThreadPoolExecutor(8) as pool:
            for name, values in zip(names, pool.map(ckpt.__getitem__, names), strict=True):
                start = 1024 * int(name[1:])
                assert values.tobytes() == data[start : start + 1000].tobytes()


def test_rows_of_a_vector_may_not_cut_a_block(tmp_path):
    content = gguf_file([], [info("v", (64,), 2)], bytes(36))
    with checkpoint.open(write(tmp_path / "x.gguf", content)) as ckpt:
        assert ckpt.read_rows("v", 32, 64).shape == (32,)
        with pytest.raises(ValueError, match="rows 0:31 of tensor 'v' cut a block"):
            ckpt.read_rows("v", 0, 31)


def test_large_quantised_tensor_is_decoded_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("moekit.checkpoint.tensors._PIECE_BYTES", 1000)
    count = 1003
    blocks = np.random.default_rng(2).integers(0, 256, (count, 18), dtype=np.uint8)
    blocks[:, 1] &= 0x3B  # finite scales
    content = gguf_file([], [info("t", (32 * count,), 2)], blocks.tobytes())
    with checkpoint.open(write(tmp_path / "x.gguf", content)) as ckpt:
        np.testing.assert_array_equal(ckpt["t"], dequantize(blocks, "q4_0").reshape(-1))


def test_version_2_no_tensors_and_large_alignment(tmp_path):
    path = tmp_path / "x.gguf"
    with checkpoint.open(write(path, gguf_file(version=2))) as ckpt:
        assert len(ckpt) == 0
    pairs = [scalar("general.alignment", 4, 256)]
    infos = [info("a", offset=256), info("b", offset=0)]
    content = gguf_file(pairs, infos, F32 + bytes(224) + F32[::-1], alignment=256)
    with checkpoint.open(write(path, content)) as ckpt:
        assert list(ckpt) == ["b", "a"]
        assert ckpt.info("b").offset == 256
        assert ckpt["b"].tobytes() == F32
        assert ckpt["a"].tobytes() == F32[::-1]


def test_arrays_of_arrays(tmp_path):
    inner = array(4, 2, u32(1) + u32(2)) + array(STRING, 1, text("x"))
    content = gguf_file([pair("k", ARRAY, array(ARRAY, 2, inner))])
    with checkpoint.open(write(tmp_path / "x.gguf", content)) as ckpt:
        first, second = ckpt.metadata["k"]
        assert first.tolist() == [1, 2]
        assert second == ["x"]


def test_large_vocabulary_and_lazy_decoding(tmp_path):
    words = [f"word{i}".encode() for i in range(50_000)]
    words[7] = b"\xff\xfe"
    body = array(STRING, len(words), b"".join(text(word) for word in words))
    content = gguf_file([pair("tokens", ARRAY, body)], [ONE], F32)
    path = write(tmp_path / "x.gguf", content)
    with checkpoint.open(path) as ckpt:
        tokens = ckpt.metadata["tokens"]
        assert len(tokens) == 50_000
        assert (tokens[0], tokens[49_999]) == ("word0", "word49999")
        assert tokens.raw(7) == b"\xff\xfe"
        with pytest.raises(FileError, match="string 7 of 'tokens' is not UTF-8"):
            list(tokens)
        assert ckpt["t"].tobytes() == F32


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


def split_part(number: int, count: int, tensor: str, **keys: int) -> bytes:
    found = {"split.no": number, "split.count": count, "split.tensors.count": count} | keys
    pairs = [scalar(key, 2, value) for key, value in found.items()]
    if number == 0:
        pairs.append(scalar("general.file_type", 4, 7))
    return gguf_file(pairs, [info(tensor)], bytes([number]) * 32)


@pytest.fixture
def split(tmp_path):
    for number in range(3):
        write(tmp_path / f"m-0000{number + 1}-of-00003.gguf", split_part(number, 3, f"t{number}"))
    return tmp_path


def test_split_set_is_one_mapping(split):
    for path in (split, split / "m-00001-of-00003.gguf"):
        with checkpoint.open_model(path) as ckpt:
            assert list(ckpt) == ["t0", "t1", "t2"]
            assert ckpt.metadata["general.file_type"] == 7
            for number in range(3):
                assert ckpt[f"t{number}"].tobytes() == bytes([number]) * 32
    with checkpoint.open(split / "m-00002-of-00003.gguf") as ckpt:
        assert list(ckpt) == ["t1"]


BAD_PART = {
    "order": (split_part(2, 3, "t1"), "split.no and split.count are 2 and 3; 1 and 3 are"),
    "count": (split_part(1, 4, "t1"), "split.no and split.count are 1 and 4; 1 and 3 are"),
    "no keys": (gguf_file([], [ONE], F32), "are None and None"),
    "another number of tensors": (
        split_part(1, 3, "t1", **{"split.tensors.count": 7}),
        "key 'split.tensors.count' 7; the first part's, 3, is required",
    ),
    "tensor of another part": (split_part(1, 3, "t0"), "has tensor 't0', which .*00001.* has too"),
    "broken": (b"GGUF", "m-00002-of-00003.gguf: version"),
}


@pytest.mark.parametrize("case", BAD_PART)
def test_bad_part_of_a_split_set(split, case):
    content, message = BAD_PART[case]
    write(split / "m-00002-of-00003.gguf", content)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileError, match=message):
        checkpoint.open_model(split)
    assert len(os.listdir("/proc/self/fd")) == before


def test_split_sets_with_something_missing(split):
    first = split / "m-00001-of-00003.gguf"
    for number in range(3):
        part = split_part(number, 3, f"t{number}", **{"split.tensors.count": 4})
        write(split / f"m-0000{number + 1}-of-00003.gguf", part)
    with pytest.raises(FileError, match=r"split\.tensors\.count is 4; the 3 parts have 3 tensors"):
        checkpoint.open_model(first)
    write(first, split_part(0, 60000, "t0"))
    with pytest.raises(FileError, match=r"split\.count 60000; at most 1024"):
        checkpoint.open_model(first)
    os.rename(first, split / "renamed.gguf")
    write(split / "renamed.gguf", split_part(0, 3, "t0"))
    with pytest.raises(FileError, match="is one of 3 parts; a name ending in -00001-of-00003"):
        checkpoint.open_model(split / "renamed.gguf")
    os.rename(split / "renamed.gguf", first)
    os.remove(split / "m-00003-of-00003.gguf")
    with pytest.raises(FileError, match=r"m-00003-of-00003\.gguf: cannot be opened: No such file"):
        checkpoint.open_model(split)


def test_links_of_a_split_set_stay_inside(split, tmp_path_factory):
    second = split / "m-00002-of-00003.gguf"
    outside = tmp_path_factory.mktemp("outside") / "x.gguf"
    os.rename(second, outside)
    os.symlink(outside, second)
    with pytest.raises(FileError, match="must stay inside"):
        checkpoint.open_model(split / "m-00001-of-00003.gguf")


def test_directory_with_several_models(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        write(tmp_path / name, gguf_file([], [ONE], F32))
    with pytest.raises(FileError, match=r"several GGUF models, 'a\.gguf' 'b\.gguf'"):
        checkpoint.open_model(tmp_path)
    os.remove(tmp_path / "b.gguf")
    with checkpoint.open_model(tmp_path) as ckpt:
        assert list(ckpt) == ["t"]


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_are_refused_or_harmless(tmp_path, seed):
    """A damaged header is refused, or what it gives lies inside the file and can be read."""
    path = tmp_path / "x.gguf"
    published_file(path)
    good = path.read_bytes()
    with checkpoint.open(path) as ckpt:
        header_end = min(ckpt.info(name).offset for name in ckpt)
    rng = random.Random(seed)
    accepted = 0
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            where = rng.randrange(header_end)
            bad[where] = rng.choice((bad[where] ^ (1 << rng.randrange(8)), rng.randrange(256), 255))
        if rng.random() < 0.1:
            del bad[rng.randrange(len(bad)) :]
        try:
            with checkpoint.open(write(path, bytes(bad))) as ckpt:
                for name in ckpt:
                    info = ckpt.info(name)
                    assert ckpt[name].shape == info.shape
                    raw = bad[info.offset : info.offset + info.nbytes]
                    assert ckpt.blocks(name).tobytes() == raw
                for value in ckpt.metadata.values():
                    if hasattr(value, "raw"):
                        list(value)
        except FileError:
            continue
        accepted += 1
    assert accepted
