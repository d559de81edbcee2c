"""GGUF: round trips with the published package, split files, and damaged headers."""

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
    write,
)

import moekit.checkpoint as checkpoint
from moekit.checkpoint import FileError, dequantize
from moekit.checkpoint.ggml_types import QUANTISED

ONE = info()


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
