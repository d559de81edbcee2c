"""Writing safetensors: read back by the published library, and nothing left after a failure."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from moekit import checkpoint
from moekit.checkpoint import stream_safetensors, write_model, write_safetensors

DTYPES = [
    *("float64", "float32", "float16", "int64", "int32", "int16", "int8"),
    *("uint64", "uint32", "uint16", "uint8", "bool", "complex64"),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
    *(ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e8m0fnu),
]


def arrays_of_every_dtype() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {np.dtype(dtype).name: rng.integers(0, 2, (3, 5)).astype(dtype) for dtype in DTYPES}


def test_published_reader_agrees(tmp_path):
    arrays = arrays_of_every_dtype()
    arrays |= {"empty": np.zeros((0, 3), np.int8), "scalar": np.array(7, np.int16), "é": np.ones(1)}
    path = tmp_path / "x.safetensors"
    write_safetensors(path, arrays, {"format": "pt", "ü": "ß"})
    with safetensors.safe_open(path, "pt") as theirs:
        assert theirs.metadata() == {"format": "pt", "ü": "ß"}
        assert set(theirs.keys()) == set(arrays)
        for name, array in arrays.items():
            tensor = theirs.get_tensor(name)
            assert tuple(tensor.shape) == array.shape
            flat = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor
            assert flat.numpy().tobytes() == array.tobytes()
    with checkpoint.open(path) as ours:
        for name, array in arrays.items():
            assert ours[name].dtype == array.dtype
            assert ours[name].tobytes() == array.tobytes()
            assert ours.info(name).offset % array.dtype.itemsize == 0
        assert min(ours.info(name).offset for name in ours) % 64 == 0


def test_views_are_written_in_order(tmp_path):
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_safetensors(tmp_path / "x.safetensors", {"t": matrix.T, "s": matrix[:, ::2]})
    with checkpoint.open(tmp_path / "x.safetensors") as ckpt:
        np.testing.assert_array_equal(ckpt["t"], matrix.T)
        np.testing.assert_array_equal(ckpt["s"], matrix[:, ::2])


def test_float4_is_packed(tmp_path):
    values = np.array([[0.5, 1, 1.5, 2], [3, 4, 6, -6]]).astype(ml_dtypes.float4_e2m1fn)
    write_safetensors(tmp_path / "x.safetensors", {"t": values})
    with checkpoint.open(tmp_path / "x.safetensors") as ckpt:
        assert ckpt.info("t").nbytes == 4
        np.testing.assert_array_equal(ckpt["t"], values)


def test_tensors_come_one_at_a_time_in_any_order(tmp_path):
    specs = {"a": ("F32", (2,)), "b": ("I8", [3]), "c": ("F64", ())}
    given = [("b", np.int8([1, 2, 3])), ("c", np.float64(5.0)), ("a", np.float32([1, 2]))]
    stream_safetensors(tmp_path / "x.safetensors", specs, iter(given))
    with checkpoint.open(tmp_path / "x.safetensors") as ckpt:
        assert {name: ckpt[name].tolist() for name in ckpt} == {
            "a": [1, 2],
            "b": [1, 2, 3],
            "c": 5,
        }


def failing():
    yield "a", np.float32([1, 2])
    raise KeyboardInterrupt


A = ("a", np.float32([1, 2]))
FAILURES = {
    "interrupted": (failing(), KeyboardInterrupt, None),
    "missing": ([], ValueError, "tensor 'a' did not come"),
    "twice": ([A, A], ValueError, "tensor 'a' came twice"),
    "not announced": ([A, ("b", A[1])], ValueError, "tensor 'b' came though not announced"),
    "other dtype": ([("a", np.float64([1, 2]))], ValueError, r"is F64 \[2\]; F32 \[2\] was"),
    "other shape": ([("a", np.float32([1]))], ValueError, r"is F32 \[1\]; F32 \[2\] was announced"),
    "strange dtype": ([("a", np.array(["x"]))], TypeError, "dtype <U1; one of float64"),
    "big-endian": ([("a", np.array([1, 2], ">f4"))], TypeError, "dtype >f4"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_after_a_failure_the_old_file_is_there_and_nothing_else(tmp_path, case):
    arrays, kind, message = FAILURES[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(kind, match=message):
        stream_safetensors(path, {"a": ("F32", (2,))}, arrays)
    assert os.listdir(tmp_path) == ["x.safetensors"]
    assert path.read_bytes() == b"old"


def test_specs_that_cannot_be(tmp_path):
    path = tmp_path / "x.safetensors"
    for specs, message in (
        ({"a": ("F7", (2,))}, "'a' is F7; known are F64"),
        ({"a": ("F32", (2**40, 2**40))}, "overflows 64 bits"),
        ({"__metadata__": ("F32", (2,))}, "cannot be named '__metadata__'"),
        ({"\ud800": ("F32", (2,))}, "cannot be named"),
    ):
        with pytest.raises(ValueError, match=message):
            stream_safetensors(path, specs, [])
    with pytest.raises(TypeError, match="metadata is not text"):
        write_safetensors(path, {}, {"a": 5})  # type: ignore[dict-item]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("shard_bytes", [1, 100, 1000, 10**9])
def test_model_directory(tmp_path, shard_bytes):
    arrays = {f"t{i}": np.full((i + 1, 3), i, np.float32) for i in range(12)}
    specs = {name: ("F32", array.shape) for name, array in arrays.items()}
    (tmp_path / "model.safetensors").write_bytes(b"an earlier model")
    (tmp_path / "model-00001-of-00099.safetensors").write_bytes(b"an earlier model")
    (tmp_path / "config.json").write_text("{}")
    write_model(tmp_path, specs, iter(arrays.items()), shard_bytes=shard_bytes)
    with checkpoint.open_directory(tmp_path) as ckpt:
        assert set(ckpt) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(ckpt[name], array)
        files = {os.path.basename(ckpt.info(name).file) for name in ckpt}
    assert set(os.listdir(tmp_path)) - {"model.safetensors.index.json", "config.json"} == files
    if shard_bytes < 1000:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(x.nbytes for x in arrays.values())
        assert len(files) == {1: 12, 100: 10}[shard_bytes]
    else:
        assert files == {"model.safetensors"}


def test_a_model_that_fails_midway_leaves_the_earlier_one(tmp_path):
    specs = dict.fromkeys("abc", ("F32", (2,)))
    arrays = {name: np.float32([1, 2]) for name in "abc"}
    write_model(tmp_path, specs, arrays.items(), shard_bytes=8)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    changed = [(name, array * 2) for name, array in arrays.items()]
    for given in (changed[:2], [*changed, ("d", changed[0][1])]):
        with pytest.raises(ValueError, match=r"did not come|came though not announced"):
            write_model(tmp_path, specs, given, shard_bytes=8)
        assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before
