"""Writing GGUF: read back by the published reader and by ours."""

import os

import gguf
import ml_dtypes
import numpy as np
import pytest

from moekit import checkpoint
from moekit.checkpoint import write_gguf
from moekit.checkpoint.ggml_types import GGML, QUANTISED, STORAGE

METADATA = {
    "general.architecture": "qwen3moe",
    "u32": 7,
    "i32": -7,
    "u64": 2**40,
    "i64": -(2**40),
    "f32": 0.5,
    "bool": True,
    "u8": np.uint8(200),
    "f64": np.float64(1e300),
    "text": "grüße",
    "empty": "",
    "strings": ["a", "", "é"],
    "none": [],
    "ints": np.array([1, -2], np.int32),
    "scores": np.array([0.5, -1.5], np.float32),
    "flags": np.array([True, False]),
}


def tensors() -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    specs, arrays = {}, {}
    for row in GGML.values():
        shape = (2, 3, 2 * row.block) if row.name != "F64" else (5,)
        specs[row.name] = (row.name, shape)
        if row.dtype is None:
            size = (2, 3, 2 * row.block_bytes)
            arrays[row.name] = rng.integers(0, 256, size, dtype=np.uint8)
        else:
            arrays[row.name] = rng.integers(-9, 9, shape).astype(row.dtype)
    return specs, arrays


def test_both_readers_agree(tmp_path):
    path = tmp_path / "x.gguf"
    specs, arrays = tensors()
    write_gguf(path, METADATA, specs, reversed(arrays.items()))
    reader = gguf.GGUFReader(path)
    assert {tensor.name for tensor in reader.tensors} == set(arrays)
    for tensor in reader.tensors:
        assert tensor.tensor_type.name == tensor.name
        assert tuple(tensor.shape.tolist())[::-1] == specs[tensor.name][1]
        assert tensor.data.tobytes() == arrays[tensor.name].tobytes()
    for key, value in METADATA.items():
        contents = reader.get_field(key).contents()
        expected = value.tolist() if isinstance(value, np.ndarray) else value
        assert contents == expected
    with checkpoint.open(path) as ckpt:
        assert list(ckpt) == list(arrays)
        for name, array in arrays.items():
            if name not in QUANTISED:
                np.testing.assert_array_equal(ckpt[name], array)
            assert ckpt.blocks(name).tobytes() == array.tobytes()
        found = dict(ckpt.metadata)
        # What was read can be written again, to the same bytes.
        write_gguf(
            tmp_path / "y.gguf",
            METADATA | {key: found[key] for key in ("strings", "ints", "text", "u32")},
            {name: (ckpt.info(name).dtype, ckpt.info(name).shape) for name in ckpt},
            arrays.items(),
        )
    assert path.read_bytes() == (tmp_path / "y.gguf").read_bytes()
    assert {key: type(found[key]) for key in ("bool", "u32", "f32")} == {
        "bool": bool,
        "u32": int,
        "f32": float,
    }


def test_types_of_python_numbers(tmp_path):
    write_gguf(tmp_path / "x.gguf", METADATA, {}, [])
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    kinds = {key: fields[key].types[-1].name for key in ("u32", "i32", "u64", "i64", "f32", "bool")}
    assert kinds == {
        "u32": "UINT32",
        "i32": "INT32",
        "u64": "UINT64",
        "i64": "INT64",
        "f32": "FLOAT32",
        "bool": "BOOL",
    }


def test_alignment(tmp_path):
    specs = {"a": ("I8", (5,)), "b": ("BF16", (3,))}
    arrays = {"a": np.arange(5, dtype=np.int8), "b": np.ones(3, ml_dtypes.bfloat16)}
    write_gguf(tmp_path / "x.gguf", {"general.alignment": 128}, specs, arrays.items())
    with checkpoint.open(tmp_path / "x.gguf") as ckpt:
        assert [ckpt.info(name).offset % 128 for name in ckpt] == [0, 0]
        assert ckpt["a"].tolist() == [0, 1, 2, 3, 4]


ROW = ("a", np.ones((2, 32), np.float32))
REFUSED = {
    "type": ({}, {"a": ("Q9_K", (32,))}, [], "'a' is Q9_K; known are"),
    "no axis": ({}, {"a": ("F32", ())}, [], r"has shape \[\]"),
    "five axes": ({}, {"a": ("F32", (1,) * 5)}, [], r"has shape \[1, 1, 1, 1, 1\]"),
    "empty axis": ({}, {"a": ("F32", (0, 3))}, [], r"has shape \[0, 3\]"),
    "row": ({}, {"a": ("Q4_0", (33,))}, [], "rows of 33 elements; Q4_0 is stored 32 at a time"),
    "name": ({}, {"a" * 64: ("F32", (1,))}, [], "has 64 bytes; at most 63"),
    "alignment": ({"general.alignment": 24}, {}, [], "general.alignment is 24"),
    "dtype": ({}, {"a": ("F16", (2, 32))}, [ROW], r"is float32 \[2, 32\]; float16 \[2, 32\]"),
    "blocks": ({}, {"a": ("Q4_0", (2, 32))}, [ROW], r"uint8 \[2, 18\] is required for Q4_0"),
    "shape": ({}, {"a": ("F32", (32, 2))}, [ROW], r"float32 \[32, 2\] is required"),
    "missing": ({}, {"a": ("F32", (2, 32))}, [], "tensor 'a' did not come"),
    "twice": ({}, {"a": ("F32", (2, 32))}, [ROW, ROW], "tensor 'a' came twice"),
    "not announced": ({}, {}, [ROW], "tensor 'a' came though not announced"),
    "large number": ({"k": 2**64}, {}, [], "64 bits are required"),
    "key": ({"": 1}, {}, [], "key is ''; text is required"),
    "value": ({"k": None}, {}, [], "value of 'k' is None"),
    "mixed list": ({"k": ["a", 1]}, {}, [], "value of 'k' is"),
    "matrix": ({"k": np.ones((2, 2))}, {}, [], "value of 'k' is"),
    "dtype of a value": ({"k": np.float16(1)}, {}, [], "value of 'k' has dtype float16"),
    "surrogate": ({"k": "\ud800"}, {}, [], "value is"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, case):
    metadata, specs, arrays, message = REFUSED[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(b"old")
    with pytest.raises((ValueError, TypeError), match=message):
        write_gguf(path, metadata, specs, arrays)
    assert os.listdir(tmp_path) == ["x.gguf"]
    assert path.read_bytes() == b"old"


def test_every_type_is_named_once():
    assert len({row.name for row in GGML.values()}) == len(GGML)
    assert all(STORAGE[row.name] == row for row in GGML.values())
