"""Safetensors: round trips with the published library, and files that break one rule each."""

import json
import os
import random
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import moekit.checkpoint as checkpoint
from moekit.checkpoint import FileError, MissingTensorError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Random bytes as `dtype`: every bit pattern counts, NaN included."""
    count = int(np.prod(shape))
    raw = np.random.default_rng(seed).integers(0, 256, max(count, 1) * dtype.itemsize, np.uint8)
    raw = raw & 1 if dtype == torch.bool else raw
    return torch.from_numpy(raw).view(dtype)[:count].reshape(shape)


def stored_bytes(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).tobytes()


def header_bytes(header: object) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def entry(dtype: object = "F32", shape: object = (2, 2), offsets: object = (0, 16)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 5), (3, 2, 4)])
def test_every_dtype_matches_the_published_writer(tmp_path, dtype, shape):
    tensor = random_tensor(DTYPES[dtype], shape, seed=len(shape))
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"x": tensor}, path, metadata={"format": "pt"})
    with checkpoint.open(path) as ckpt:
        info, array = ckpt.info("x"), ckpt["x"]
        blocks = ckpt.blocks("x")
        assert ckpt.metadata == {"format": "pt"}
    assert (info.dtype, info.shape, info.nbytes) == (dtype, shape, tensor.nbytes)
    assert array.shape == shape
    assert array.flags.writeable
    assert array.ctypes.data % 64 == 0 or not array.size
    expected = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.nbytes else b""
    assert stored_bytes(array) == expected == blocks.tobytes()


def test_values_and_order(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {f"t{i}": rng.normal(size=(i + 1, 3)).astype(np.float32) for i in range(20)}
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors, path)
    with checkpoint.open(path) as ckpt:
        assert ckpt.keys() == tensors.keys()
        offsets = [ckpt.info(name).offset for name in ckpt]
        assert offsets == sorted(offsets)
        for name, expected in tensors.items():
            np.testing.assert_array_equal(ckpt[name], expected)


def test_bfloat16_values(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"x": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, path)
    with checkpoint.open(path) as ckpt:
        assert ckpt["x"].dtype == np.dtype(ml_dtypes.bfloat16)
        assert ckpt["x"].tolist() == [1.5, -2.0]


def test_rows_and_read_into(tmp_path):
    bank = np.arange(5 * 3 * 4, dtype=np.int32).reshape(5, 3, 4)
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": np.ones(3, np.float16), "bank": bank}, path)
    with checkpoint.open(path) as ckpt:
        for start in range(6):
            for stop in range(start, 6):
                np.testing.assert_array_equal(ckpt.read_rows("bank", start, stop), bank[start:stop])
                assert ckpt.blocks("bank", start, stop).tobytes() == bank[start:stop].tobytes()
        room = np.zeros((5, 3, 4), np.int32)
        ckpt.read_into("bank", room)
        np.testing.assert_array_equal(room, bank)
        ckpt.read_into("bank", raw := bytearray(bank.nbytes))
        assert bytes(raw) == bank.tobytes()
        with pytest.raises(ValueError, match="rows 2:6 of tensor 'bank'; it has 5"):
            ckpt.read_rows("bank", 2, 6)
        with pytest.raises(ValueError, match="240 writable contiguous bytes"):
            ckpt.read_into("bank", bytearray(10))
        with pytest.raises(ValueError, match="read-only"):
            ckpt.read_into("bank", bytes(bank.nbytes))


def test_float4_is_unpacked_low_nibble_first(tmp_path):
    content = header_bytes({"x": entry("F4", [2, 4], [0, 4])}) + bytes([0x21, 0x43, 0x65, 0xF7])
    with checkpoint.open(write(tmp_path / "x.safetensors", content)) as ckpt:
        assert ckpt["x"].astype(np.float32).tolist() == [[0.5, 1, 1.5, 2], [3, 4, 6, -6]]
        assert ckpt.read_rows("x", 1, 2).astype(np.float32).tolist() == [[3, 4, 6, -6]]


def test_missing_tensor_and_closed_checkpoint(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"x": np.ones(2, np.float32)}, path)
    with checkpoint.open(path) as ckpt:
        assert ckpt.get("y") is None
        with pytest.raises(MissingTensorError, match=r"has no tensor 'y'") as caught:
            ckpt["y"]
        assert isinstance(caught.value, (FileError, KeyError))
    with pytest.raises(ValueError, match="closed"):
        ckpt["x"]


DATA = bytes(16)
DEEP = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
ONE = header_bytes({"x": entry()})
# Name -> (whole file, what the message must say).
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "has 0 bytes"),
    "seven bytes": (b"\0" * 7, "has 7 bytes"),
    "nothing but a length": (struct.pack("<Q", 2), "has 8 bytes"),
    "length 0": (struct.pack("<Q", 0) + b"{}", "header begins with"),
    "length 2**64-1": (struct.pack("<Q", 2**64 - 1) + b"{}", "at most 100000000"),
    "length 2**63": (struct.pack("<Q", 2**63) + b"{}", "at most"),
    "length over the cap": (struct.pack("<Q", 100_000_001) + b"{}", "at most"),
    "length past the end": (struct.pack("<Q", 99_999_999) + b"{}", "file ends at 10"),
    "one past the end": (struct.pack("<Q", 3) + b"{}", "file ends at 10"),
    "leading space": (header_bytes(b" {}"), "header begins with"),
    "byte-order mark": (header_bytes(b"\xef\xbb\xbf{}"), "header begins with"),
    "utf-16": (header_bytes("{}".encode("utf-16-le")), "not JSON"),
    "not utf-8": (header_bytes(b'{"\xff":1}'), "not UTF-8 at byte 2"),
    "not json": (header_bytes(b"{nonsense}"), "not JSON"),
    "two objects": (header_bytes(b"{}{}"), "not JSON"),
    "an array": (header_bytes(b"[]"), "header begins with"),
    "pickle": (b"\x80\x04" + bytes(60), "file ends at 62|at most"),
    "deep": (header_bytes(DEEP), "nested too deep"),
    "deep, within the parser": (
        header_bytes(b'{"x":' + b"[" * 100 + b"]" * 100 + b"}"),
        "nested too deep",
    ),
    "duplicate name": (
        header_bytes(b'{"x":%b,"x":%b}' % ((json.dumps(entry()).encode(),) * 2)) + DATA,
        "'x' stands twice",
    ),
    "duplicate field": (
        header_bytes(b'{"x":{"dtype":"F32","dtype":"F64","shape":[2],"data_offsets":[0,16]}}')
        + DATA,
        "'dtype' stands twice",
    ),
    "duplicate metadata": (header_bytes(b'{"__metadata__":{"a":"1","a":"2"}}'), "'a' stands twice"),
    "metadata list": (header_bytes({"__metadata__": []}), "__metadata__ is a list"),
    "metadata number": (header_bytes({"__metadata__": {"a": 1}}), "'a' is not text"),
    "metadata null": (header_bytes({"__metadata__": None}), "__metadata__ is a NoneType"),
    "lone surrogate": (
        header_bytes(b'{"\\ud800":%b}' % json.dumps(entry()).encode()) + DATA,
        "Unic",
    ),
    "entry list": (header_bytes({"x": []}), "tensor 'x' has fields"),
    "entry null": (header_bytes({"x": None}), "tensor 'x' has fields"),
    "entry empty": (header_bytes({"x": {}}), "tensor 'x' has fields"),
    "entry without dtype": (header_bytes({"x": {"shape": [], "data_offsets": [0, 0]}}), "fields"),
    "entry with more": (header_bytes({"x": entry() | {"stride": 1}}) + DATA, "fields"),
    "NaN": (header_bytes(b'{"x":NaN}'), "NaN is not a number of JSON"),
    "1e999": (header_bytes(b'{"x":1e999}'), "does not fit a double"),
    "5000 digits": (header_bytes(b'{"x":' + b"1" * 5000 + b"}"), "not JSON"),
    "unknown dtype": (header_bytes({"x": entry("F7")}) + DATA, "has dtype 'F7'; read are F64 F32"),
    "six-bit dtype": (header_bytes({"x": entry("F6_E2M3")}) + DATA, "has dtype 'F6_E2M3'"),
    "lower-case dtype": (header_bytes({"x": entry("f32")}) + DATA, "has dtype 'f32'"),
    "dtype number": (header_bytes({"x": entry(5)}) + DATA, "has dtype 5"),
    "dtype list": (header_bytes({"x": entry([])}) + DATA, r"has dtype \[\]"),
    "shape text": (header_bytes({"x": entry(shape="22")}) + DATA, "has shape '22'"),
    "shape null": (header_bytes({"x": entry(shape=None)}) + DATA, "has shape None"),
    "shape negative": (header_bytes({"x": entry(shape=[-2, -2])}) + DATA, r"has shape \[-2, -2\]"),
    "shape float": (header_bytes({"x": entry(shape=[2.0, 2])}) + DATA, r"has shape \[2.0, 2\]"),
    "shape bool": (header_bytes({"x": entry(shape=[True, 4])}) + DATA, r"has shape \[True, 4\]"),
    "shape nested": (header_bytes({"x": entry(shape=[[2], 2])}) + DATA, "has shape"),
    "shape 2**64": (header_bytes({"x": entry(shape=[2**64])}) + DATA, "has shape"),
    "shape overflow": (header_bytes({"x": entry(shape=[2**32] * 2)}) + DATA, "overflows 64 bits"),
    "shape overflow to 4": (
        header_bytes({"x": entry(shape=[2**62, 4, 1, 4])}) + DATA,
        "overflows 64 bits",
    ),
    "shape overflow behind zero": (
        header_bytes({"x": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}),
        "overflows 64 bits",
    ),
    "65 dimensions": (header_bytes({"x": entry(shape=[1] * 65)}) + DATA, "has 65 dimensions"),
    "offsets null": (header_bytes({"x": entry(offsets=None)}) + DATA, "data_offsets None"),
    "offsets one": (header_bytes({"x": entry(offsets=[16])}) + DATA, "two integers"),
    "offsets three": (header_bytes({"x": entry(offsets=[0, 16, 16])}) + DATA, "two integers"),
    "offsets float": (header_bytes({"x": entry(offsets=[0, 16.0])}) + DATA, "two integers"),
    "offsets bool": (header_bytes({"x": entry(offsets=[False, 16])}) + DATA, "two integers"),
    "offsets negative": (header_bytes({"x": entry(offsets=[-16, 0])}) + DATA, "0 <= begin <= end"),
    "offsets reversed": (header_bytes({"x": entry(offsets=[16, 0])}) + DATA, "0 <= begin <= end"),
    "offsets 2**63": (header_bytes({"x": entry(offsets=[2**63, 2**63 + 16])}) + DATA, "0 <= begin"),
    "offsets 4300 digits": (
        header_bytes(json.dumps({"x": entry(offsets=[0, 10**4299])}).encode()) + DATA,
        "0 <= begin <= end",
    ),
    "end outside": (header_bytes({"x": entry(offsets=[0, 17])}) + DATA, "file ends at"),
    "bytes too few": (header_bytes({"x": entry(offsets=[0, 12])}) + DATA, "has 12 bytes; F32"),
    "bytes too many": (
        header_bytes({"x": entry(shape=[2])}) + DATA,
        "has 16 bytes; F32 .2. takes 8",
    ),
    "hole at the start": (
        header_bytes({"x": entry(offsets=[4, 20])}) + DATA + DATA,
        "follows a hole",
    ),
    "hole between": (
        header_bytes({"x": entry(), "y": entry(offsets=[20, 36])}) + bytes(36),
        "tensor 'y' begins at .* and follows a hole",
    ),
    "overlap": (
        header_bytes({"x": entry(), "y": entry(offsets=[12, 28])}) + bytes(28),
        "tensor 'y' begins at .* and overlaps",
    ),
    "same bytes twice": (header_bytes({"x": entry(), "y": entry()}) + DATA, "overlaps"),
    "data left over": (ONE + DATA + b"\0", "tensors end at .*, file ends at"),
    "data cut": (ONE + DATA[:-1], "file ends at"),
    "no data": (ONE, "file ends at"),
    "no tensors but data": (header_bytes({}) + b"\0", "tensors end at 10, file ends at 11"),
    "odd row of F4": (header_bytes({"x": entry("F4", [2, 3], [0, 3])}) + DATA[:3], "2 at a time"),
    "scalar F4": (header_bytes({"x": entry("F4", [], [0, 1])}) + DATA[:1], "2 at a time"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file_is_refused_and_named(tmp_path, case):
    content, message = MALFORMED[case]
    path = write(tmp_path / "bad.safetensors", content)
    with pytest.raises(FileError, match=message) as caught:
        checkpoint.open(path)
    assert str(caught.value).startswith(f"[safetensors] {path}: ")


def test_empty_header_and_trailing_spaces_are_read(tmp_path):
    for text in (b"{}", b"{}      "):
        with checkpoint.open(write(tmp_path / "x.safetensors", header_bytes(text))) as ckpt:
            assert len(ckpt) == 0


def test_bool_bytes_other_than_0_and_1_are_refused(tmp_path):
    content = header_bytes({"x": entry("BOOL", [2], [0, 2])}) + b"\1\2"
    with (
        checkpoint.open(write(tmp_path / "x.safetensors", content)) as ckpt,
        pytest.raises(FileError, match="tensor 'x' holds the byte 2"),
    ):
        ckpt["x"]


def test_file_that_shrinks_while_open(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"x": np.ones(10_000, np.float32)}, path)
    with checkpoint.open(path) as ckpt:
        os.truncate(path, 5000)
        with pytest.raises(FileError, match="the file shrank: it ends at 5000"):
            ckpt["x"]


def test_replaced_file_keeps_its_old_content(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"x": np.ones(10, np.float32)}, path)
    with checkpoint.open(path) as ckpt:
        os.replace(write(tmp_path / "other", b"nothing"), path)
        assert ckpt["x"].tolist() == [1.0] * 10


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_are_refused_or_harmless(tmp_path, seed):
    """A damaged file is refused, or it is still a file: then the published reader agrees."""
    rng = random.Random(seed)
    arrays = {f"a.{i}": np.arange(i * 5, dtype=np.float32).reshape(i, 5) for i in range(4)}
    good = bytearray(safetensors.numpy.save(arrays, metadata={"k": "v"}))
    header_end = 8 + struct.unpack_from("<Q", good)[0]
    path = tmp_path / "x.safetensors"
    accepted = 0
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            where = rng.randrange(header_end)
            bad[where] = rng.choice((bad[where] ^ (1 << rng.randrange(8)), rng.randrange(32, 127)))
        if rng.random() < 0.1:
            del bad[rng.randrange(len(bad)) :]
        try:
            with checkpoint.open(write(path, bytes(bad))) as ckpt:
                found = {name: ckpt[name] for name in ckpt}
        except FileError:
            continue
        accepted += 1
        published = {x["name"]: x["data"] for x in map(_named, safetensors.deserialize(bytes(bad)))}
        assert {name: stored_bytes(array) for name, array in found.items()} == published
    assert accepted


def _named(item: tuple[str, dict]) -> dict:
    return {"name": item[0], "data": bytes(item[1]["data"])}
