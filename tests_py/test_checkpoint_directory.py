"""Checkpoint directories: shards against their index, links, special files, configurations."""

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import moekit.checkpoint as checkpoint
from moekit.checkpoint import FileError

NAMES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
TENSORS = {
    NAMES[0]: {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 3), np.int64)},
    NAMES[1]: {"c": np.arange(4, dtype=np.float16)},
}
WEIGHT_MAP = {name: shard for shard, tensors in TENSORS.items() for name in tensors}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for shard, tensors in TENSORS.items():
        safetensors.numpy.save_file(tensors, folder / shard, metadata={"format": "pt"})
    write_index(folder, {"metadata": {"total_size": 80}, "weight_map": WEIGHT_MAP})
    return folder


def write_index(folder: Path, index: object) -> None:
    text = index if isinstance(index, str) else json.dumps(index)
    (folder / INDEX).write_text(text)


def test_shards_are_one_mapping(sharded):
    with checkpoint.open_directory(sharded) as ckpt:
        assert set(ckpt) == {"a", "b", "c"}
        assert ckpt.metadata == {"format": "pt"}
        assert os.path.basename(ckpt.info("c").file) == NAMES[1]
        for tensors in TENSORS.values():
            for name, expected in tensors.items():
                np.testing.assert_array_equal(ckpt[name], expected)
                assert ckpt[name].dtype == expected.dtype


def test_single_file_comes_first(sharded):
    safetensors.numpy.save_file({"only": np.zeros(1)}, sharded / "model.safetensors")
    with checkpoint.open_directory(str(sharded)) as ckpt:
        assert list(ckpt) == ["only"]


def test_close_gives_every_file_back(sharded):
    before = len(os.listdir("/proc/self/fd"))
    ckpt = checkpoint.open_directory(sharded)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    ckpt.close()
    ckpt.close()
    assert len(os.listdir("/proc/self/fd")) == before


BAD_INDEX = {
    "not json": ("{", "the index is not JSON"),
    "a list": ([], "the index is a list"),
    "no weight_map": ({}, "weight_map is a NoneType"),
    "weight_map list": ({"weight_map": []}, "weight_map is a list"),
    "weight_map empty": ({"weight_map": {}}, "weight_map is empty"),
    "duplicate tensor": ('{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}', "'a' stands"),
    "shard number": ({"weight_map": {"a": 5}}, "'a' is not text"),
    "shard null": ({"weight_map": {"a": None}}, "'a' is not text"),
    "missing shard": ({"weight_map": {"a": "x.safetensors"}}, "'x.safetensors' is missing"),
    "parent": ({"weight_map": {"a": "../x.safetensors"}}, "of the directory itself"),
    "absolute": ({"weight_map": {"a": "/etc/passwd"}}, "of the directory itself"),
    "sub-folder": ({"weight_map": {"a": "s/x.safetensors"}}, "of the directory itself"),
    "backslash": ({"weight_map": {"a": "..\\x.safetensors"}}, "of the directory itself"),
    "dots": ({"weight_map": {"a": ".."}}, "of the directory itself"),
    "empty name": ({"weight_map": {"a": ""}}, "of the directory itself"),
    "zero byte": ({"weight_map": {"a": "x\0.safetensors"}}, "of the directory itself"),
    "surrogate": ({"weight_map": {"a": "\udc80.safetensors"}}, "of the directory itself"),
    "pickle": ({"weight_map": {"a": "pytorch_model.bin"}}, "of the directory itself"),
    "tensor not in its shard": (
        {"weight_map": WEIGHT_MAP | {"d": NAMES[0]}},
        "places tensor 'd' in 'model-00001-of-00002.safetensors', which does not have it",
    ),
    "tensor not in the index": (
        {"weight_map": {k: v for k, v in WEIGHT_MAP.items() if k != "b"}},
        "has tensor 'b', model.safetensors.index.json does not name it",
    ),
    "tensor in another shard": (
        {"weight_map": WEIGHT_MAP | {"a": NAMES[1]}},
        "has tensor 'a', model.safetensors.index.json places it in",
    ),
    "too many shards": (
        {"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(3000)}},
        "3000 shards; at most 2048",
    ),
}


@pytest.mark.parametrize("case", BAD_INDEX)
def test_bad_index_is_refused_and_named(sharded, case):
    index, message = BAD_INDEX[case]
    write_index(sharded, index)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileError, match=message):
        checkpoint.open_directory(sharded)
    assert len(os.listdir("/proc/self/fd")) == before


def test_tensor_in_two_shards(sharded):
    safetensors.numpy.save_file(TENSORS[NAMES[1]] | {"a": np.zeros(1)}, sharded / NAMES[1])
    with pytest.raises(FileError, match=r"has tensor 'a', .* places it in"):
        checkpoint.open_directory(sharded)


def test_truncated_shard(sharded):
    shard = sharded / NAMES[1]
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(FileError, match=r"00002-of-00002\.safetensors: tensor 'c' ends at"):
        checkpoint.open_directory(sharded)


def test_huge_index_is_not_read(sharded):
    os.truncate(sharded / INDEX, 1 << 40)
    with pytest.raises(FileError, match="has 1099511627776 bytes; at most"):
        checkpoint.open_directory(sharded)


@pytest.mark.parametrize("absolute", [False, True])
def test_link_out_of_the_directory_is_refused(sharded, tmp_path, absolute):
    outside = tmp_path / "outside.safetensors"
    os.rename(sharded / NAMES[1], outside)
    os.symlink(outside if absolute else "../outside.safetensors", sharded / NAMES[1])
    with pytest.raises(FileError, match=r"leads to .*outside\.safetensors; .* must stay inside"):
        checkpoint.open_directory(sharded)


def test_link_to_a_sibling_with_the_same_prefix_is_refused(sharded, tmp_path):
    other = tmp_path / "model-other"
    other.mkdir()
    os.rename(sharded / NAMES[1], other / "x")
    os.symlink("../model-other/x", sharded / NAMES[1])
    with pytest.raises(FileError, match="must stay inside"):
        checkpoint.open_directory(sharded)


def test_links_inside_are_followed(sharded, tmp_path):
    os.rename(sharded / NAMES[1], sharded / "stored")
    os.symlink("stored", sharded / NAMES[1])
    os.symlink(sharded, tmp_path / "alias")
    with checkpoint.open_directory(tmp_path / "alias") as ckpt:
        assert len(ckpt) == 3


def test_hugging_face_cache_layout(sharded, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, name in enumerate(os.listdir(sharded)):
        os.rename(sharded / name, blobs / f"hash{i}")
        os.symlink(f"../../blobs/hash{i}", snapshot / name)
    with checkpoint.open_directory(snapshot) as ckpt:
        assert len(ckpt) == 3
    os.remove(snapshot / NAMES[0])
    os.symlink("../../elsewhere", snapshot / NAMES[0])
    with pytest.raises(FileError, match="must stay inside"):
        checkpoint.open_directory(snapshot)


def make_special(path: Path, kind: str) -> None:
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "loop":
        os.symlink(path.name, path)
    elif kind == "dangling":
        os.symlink("nowhere", path)
    elif kind == "device":
        os.symlink("/dev/zero", path)


SPECIAL = {
    "FIFO": "is a FIFO; a regular file is required",
    "directory": "is a directory; a regular file is required",
    "socket": "is a socket; a regular file is required",
    "device": "is a character device; a regular file is required",
    "loop": "cannot be opened: Too many levels of symbolic links",
    "dangling": "cannot be opened: No such file",
    "missing": "cannot be opened: No such file",
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_only_regular_files_are_opened(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    make_special(Path("x.safetensors"), kind)
    with pytest.raises(FileError, match=SPECIAL[kind]):
        checkpoint.open("x.safetensors")


@pytest.mark.parametrize("name", [NAMES[1], INDEX])
@pytest.mark.parametrize("kind", ["FIFO", "directory", "device", "dangling"])
def test_special_files_in_a_directory(sharded, name, kind):
    os.remove(sharded / name)
    make_special(sharded / name, kind)
    with pytest.raises(FileError, match=f"{SPECIAL[kind]}|must stay inside"):
        checkpoint.open_directory(sharded)


def test_paths_that_cannot_be():
    for path in ("a\0b.safetensors", "x" * 5000 + ".safetensors"):
        with pytest.raises(FileError, match="cannot be opened"):
            checkpoint.open(path)
    with pytest.raises(FileError, match="unknown ending"):
        checkpoint.open("pytorch_model.bin")
    with pytest.raises(FileError, match="no directory"):
        checkpoint.open_directory("/no/such/folder")
    with pytest.raises(TypeError):
        checkpoint.open(5)  # type: ignore[arg-type]


def test_directory_without_weights_says_what_is_there(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(FileError, match=r"no weights among 'pytorch_model\.bin'"):
        checkpoint.open_directory(tmp_path)


def test_config(tmp_path):
    text = '{"hidden_size": 64, "x": {"__float__": "Infinity"}, "y": [0.0, -Infinity]}'
    (tmp_path / "config.json").write_text(text)
    config = checkpoint.read_config(tmp_path)
    assert config == {"hidden_size": 64, "x": float("inf"), "y": [0.0, float("-inf")]}


BAD_CONFIG = {
    "empty": (b"", "not JSON"),
    "list": (b"[]", "is a list; a JSON object is required"),
    "number": (b"5", "is a int"),
    "duplicate": (b'{"a": 1, "b": {"c": 1, "c": 1}}', "key 'c' stands twice"),
    "NaN": (b'{"a": NaN}', "NaN is not a number"),
    "too large": (b'{"a": 1e400}', "does not fit a double"),
    "deep": (b'{"a":' * 70 + b"1" + b"}" * 70, "nested too deep"),
    "deeper": (b'{"a":' * 9999 + b"1" + b"}" * 9999, "nested too deep"),
    "not utf-8": (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "byte-order mark": (b"\xef\xbb\xbf{}", "not JSON"),
    "trailing text": (b"{} x", "not JSON"),
    "long": (b"{" + b" " * (8 << 20) + b"}", "has 8388610 bytes; at most 8388608"),
}


@pytest.mark.parametrize("case", BAD_CONFIG)
def test_bad_config_is_refused(tmp_path, case):
    content, message = BAD_CONFIG[case]
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        checkpoint.read_config(tmp_path)
    assert f"{tmp_path}/config.json: " in str(caught.value)


def test_text_files(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ messages }} é")
    assert checkpoint.has_file(tmp_path, "chat_template.jinja")
    assert not checkpoint.has_file(tmp_path, "tokenizer.json")
    assert checkpoint.read_text(tmp_path, "chat_template.jinja", 100) == "{{ messages }} é"
    with pytest.raises(FileError, match="has 17 bytes; at most 16"):
        checkpoint.read_text(tmp_path, "chat_template.jinja", 16)
    (tmp_path / "bad.txt").write_bytes(b"ok\xff")
    with pytest.raises(FileError, match="not UTF-8 at byte 2"):
        checkpoint.read_text(tmp_path, "bad.txt", 100)
    for name in ("../x", "/etc/passwd", ""):
        with pytest.raises(FileError, match="a plain file name is required"):
            checkpoint.read_text(tmp_path, name, 100)
