"""Broken GGUF files, for `malformed_files.CASES`."""

import struct
from collections.abc import Callable
from pathlib import Path

from gguf_bytes import text, u32, u64
from malformed_files import CASES, Case, case


def gguf(name: str, change: Callable[[bytearray], bytes | None]) -> None:
    @case(f"gguf: {name}")
    def _(folder: Path) -> Path:
        data = bytearray((folder / "model.gguf").read_bytes())
        changed = change(data)
        (folder / "model.gguf").write_bytes(data if changed is None else changed)
        return folder / "model.gguf"


def put(offset: int, value: bytes) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[offset : offset + len(value)] = value

    return change


def near(mark: bytes, skip: int, value: bytes) -> Callable[[bytearray], None]:
    """Write `value` so many bytes behind the end of the first `mark`."""

    def change(data: bytearray) -> None:
        at = data.index(mark) + len(mark) + skip
        data[at : at + len(value)] = value

    return change


for _name, _change in {
    "empty": lambda d: b"",
    "three bytes": lambda d: bytes(d[:3]),
    "magic": put(0, b"GGML"),
    "version 0": put(4, u32(0)),
    "version 1": put(4, u32(1)),
    "version 99": put(4, u32(99)),
    "big-endian": put(4, u32(3)[::-1]),
    "2^63 tensors": put(8, u64(1 << 63)),
    "2^64-1 tensors": put(8, u64((1 << 64) - 1)),
    "10^7 tensors": put(8, u64(10**7)),
    "2^63 keys": put(16, u64(1 << 63)),
    "10^8 keys": put(16, u64(10**8)),
    "no keys": put(16, u64(0)),
    "a key less": lambda d: put(16, u64(int.from_bytes(d[16:24], "little") - 1))(d),
    "a tensor less": lambda d: put(8, u64(int.from_bytes(d[8:16], "little") - 1))(d),
    "key of 2^63 bytes": put(24, u64(1 << 63)),
    "key of 70000 bytes": put(24, u64(70_000)),
    "key of no bytes": put(24, u64(0)),
    "key not utf-8": put(32, b"\xff\xfe"),
    "type 13": near(b"llama.block_count", 0, u32(13)),
    "type 2^32-1": near(b"llama.block_count", 0, u32((1 << 32) - 1)),
    "an array of 2^63": near(b"llama.block_count", 0, u32(9) + u32(4) + u64(1 << 63)),
    "an array of arrays of arrays": near(b"llama.block_count", 0, u32(9) + (u32(9) + u64(1)) * 6),
    "2^40 texts": near(b"llama.block_count", 0, u32(9) + u32(8) + u64(1 << 40)),
    "a text of 2^63": near(b"llama.block_count", 0, u32(8) + u64(1 << 63)),
    "block_count 2^31": near(b"llama.block_count", 4, u32(1 << 31)),
    "block_count 0": near(b"llama.block_count", 4, u32(0)),
    "block_count 2": near(b"llama.block_count", 4, u32(2)),
    "block_count a float": near(b"llama.block_count", 0, u32(6)),
    "embedding_length 0": near(b"llama.embedding_length", 4, u32(0)),
    "embedding_length 2^32-1": near(b"llama.embedding_length", 4, u32((1 << 32) - 1)),
    "expert_count 10^9": near(b"llama.expert_count", 4, u32(10**9)),
    "expert_used_count 6": near(b"llama.expert_used_count", 4, u32(6)),
    "head_count 0": near(b"llama.attention.head_count", 4, u32(0)),
    "head_count 7": near(b"llama.attention.head_count", 4, u32(7)),
    "eps nan": near(b"layer_norm_rms_epsilon", 4, struct.pack("<f", float("nan"))),
    "eps infinite": near(b"layer_norm_rms_epsilon", 4, struct.pack("<f", float("inf"))),
    "theta nan": near(b"rope.freq_base", 4, struct.pack("<f", float("nan"))),
    "theta negative": near(b"rope.freq_base", 4, struct.pack("<f", -1.0)),
    "another architecture": near(b"general.architecture", 12, b"bloom"),
    "architecture not utf-8": near(b"general.architecture", 12, b"\xff\xff\xff\xff\xff"),
    "0 dimensions": near(b"output_norm.weight", 0, u32(0)),
    "5 dimensions": near(b"output_norm.weight", 0, u32(5)),
    "2^32-1 dimensions": near(b"output_norm.weight", 0, u32((1 << 32) - 1)),
    "size 0": near(b"output_norm.weight", 4, u64(0)),
    "size 2^63": near(b"output_norm.weight", 4, u64(1 << 63)),
    "size 2^64-1": near(b"output_norm.weight", 4, u64((1 << 64) - 1)),
    "size 71": near(b"output_norm.weight", 4, u64(71)),
    "size 10^15": near(b"output_norm.weight", 4, u64(10**15)),
    "sizes that overflow": near(b"token_embd.weight", 4, u64(1 << 62) + u64(1 << 62)),
    "tensor type 4": near(b"output_norm.weight", 12, u32(4)),
    "tensor type 31": near(b"output_norm.weight", 12, u32(31)),
    "tensor type 2^31": near(b"output_norm.weight", 12, u32(1 << 31)),
    "tensor type of blocks": near(b"output_norm.weight", 12, u32(12)),
    "tensor type of integers": near(b"output_norm.weight", 12, u32(26)),
    "offset 1": near(b"output_norm.weight", 16, u64(1)),
    "offset 2^63": near(b"output_norm.weight", 16, u64(1 << 63)),
    "offset 2^64-32": near(b"output_norm.weight", 16, u64((1 << 64) - 32)),
    "offset beyond": near(b"output_norm.weight", 16, u64(1 << 30)),
    "offset of another": near(b"output_norm.weight", 16, u64(64)),
    "a name of 2^63 bytes": lambda d: near(b"output_norm.weight", -26, u64(1 << 63))(d),
    "a name twice": near(b"blk.1.ffn_nor", -8, b"0.ffn_nor"),
    "a name not utf-8": near(b"output_norm", -2, b"\xff\xff"),
    "a tensor nobody knows": near(b"output_no", 0, b"se"),
    "a byte short": lambda d: bytes(d[:-1]),
    "half": lambda d: bytes(d[: len(d) // 2]),
    "zeros": lambda d: bytes(len(d)),
    "0xff": lambda d: bytes(d[:24]) + b"\xff" * (len(d) - 24),
}.items():
    gguf(_name, _change)
for _part in range(1, 25):
    gguf(f"cut after {_part}/25 of the header", lambda d, p=_part: bytes(d[: 2400 * p // 25]))


@case("gguf: a part of a set that is not there")
def _(folder: Path) -> Path:
    import numpy as np

    import moekit as mk

    with mk.checkpoint.open(folder / "model.gguf") as file:
        mk.checkpoint.write_gguf(
            folder / "x-00001-of-00002.gguf",
            {**file.metadata, "split.no": np.uint16(0), "split.count": np.uint16(2)},
            {name: ("F32", file.info(name).shape) for name in file},
            ((name, file[name]) for name in file),
        )
    return folder / "x-00001-of-00002.gguf"


def many_arrays(folder: Path) -> Path:
    inner = u32(0) + u64(0)
    body = u32(9) + u64(1_000_000) + inner * 1_000_000
    pairs = text("a") + u32(9) + body
    (folder / "model.gguf").write_bytes(b"GGUF" + u32(3) + u64(0) + u64(1) + pairs)
    return folder / "model.gguf"


CASES["gguf: a million arrays in an array"] = many_arrays


def rewritten(key: str, value: object) -> Case:
    """The sound file with a key of its metadata changed."""

    def change(folder: Path) -> Path:
        import moekit as mk

        with mk.checkpoint.open(folder / "model.gguf") as file:
            metadata = {**file.metadata, key: value}
            specs = {name: (file.info(name).dtype, file.info(name).shape) for name in file}
            arrays = [(name, file[name]) for name in file]
        mk.checkpoint.write_gguf(folder / "model.gguf", metadata, specs, arrays)
        return folder / "model.gguf"

    return change


for _key, _value in {
    "rope.scaling.type": "weird",
    "rope.freq_base": -1.0,
    "rope.dimension_count": 3,
    "block_count": 1 << 31,
    "expert_count": 1 << 31,
    "expert_used_count": 77,
    "embedding_length": 1 << 40,
    "attention.layer_norm_rms_epsilon": float("nan"),
}.items():
    CASES[f"gguf: llama.{_key} is {_value}"] = rewritten(f"llama.{_key}", _value)
for _name, _text in {
    "objects in objects": '{"model":' * 300_000,
    "arrays in arrays": "[" * 1_000_000,
}.items():
    CASES[f"tokenizer.json: {_name}"] = lambda folder, text=_text: (
        (folder / "tokenizer.json").write_text(text),
        folder,
    )[1]
