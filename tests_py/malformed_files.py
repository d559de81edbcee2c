"""Broken and hostile model files, made from a sound one: `CASES` names them, with those that
`hostile_files` adds some six hundred.

A case is a function of a folder that holds a copy of the sound checkpoint (`model.safetensors`,
`config.json`, tokenizer files and `model.gguf`), breaks something, and returns the path to load.
"""

import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gguf_bytes import text, u32, u64

Case = Callable[[Path], Path]
CASES: dict[str, Case] = {}

ST = "model.safetensors"
DEEP = "[" * 100_000 + "]" * 100_000


def case(name: str) -> Callable[[Case], Case]:
    def keep(function: Case) -> Case:
        assert name not in CASES, name
        CASES[name] = function
        return function

    return keep


# -- safetensors ---------------------------------------------------------------------------------


def split(folder: Path) -> tuple[dict[str, Any], bytes]:
    raw = (folder / ST).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def write(folder: Path, header: bytes, data: bytes, length: int | None = None) -> Path:
    size = len(header) if length is None else length
    (folder / ST).write_bytes(size.to_bytes(8, "little") + header + data)
    return folder


def raw_header(name: str, change: Callable[[bytes], bytes], length: int | None = None) -> None:
    @case(f"safetensors header: {name}")
    def _(folder: Path) -> Path:
        header, data = split(folder)
        return write(folder, change(json.dumps(header).encode()), data, length)


for _name, _change in {
    "empty": lambda h: b"",
    "not json": lambda h: b"hello world",
    "cut": lambda h: h[: len(h) // 2],
    "an array": lambda h: b"[" + h + b"]",
    "a number": lambda h: b"17",
    "null": lambda h: b"null",
    "a text": lambda h: b'"x"',
    "byte-order mark": lambda h: b"\xef\xbb\xbf" + h,
    "utf-16": lambda h: h.decode().encode("utf-16"),
    "invalid utf-8": lambda h: h.replace(b"F32", b"F\xff2", 1),
    "leading space": lambda h: b" " + h,
    "trailing bytes": lambda h: h + b"xx",
    "two objects": lambda h: h + h,
    "NaN": lambda h: h.replace(b'"shape": [', b'"shape": [NaN, ', 1),
    "Infinity": lambda h: h.replace(b'"data_offsets": [', b'"data_offsets": [Infinity, ', 1),
    "1e999": lambda h: h.replace(b'"shape": [', b'"shape": [1e999, ', 1),
    "ten thousand digits": lambda h: h.replace(b'"shape": [', b'"shape": [' + b"9" * 10_000 + b","),
    "nested arrays": lambda h: h.replace(
        b'"shape": [', b'"shape": ' + DEEP.encode() + b', "x": [', 1
    ),
    "nested objects": lambda h: b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "a tensor twice": lambda h: h[:-1] + b"," + h[1:],
    "a field twice": lambda h: h.replace(b'"dtype": "F32"', b'"dtype": "F32", "dtype": "F16"', 1),
    "lone surrogate": lambda h: h.replace(b"model.norm", b"model.\\ud800", 1),
    "control character": lambda h: h.replace(b"model.norm", b"model.\nnorm", 1),
    "single quotes": lambda h: h.replace(b'"', b"'"),
    "comment": lambda h: b"/* x */" + h,
    "pickle": lambda h: b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.",
}.items():
    raw_header(_name, _change)

for _name, _size in {
    "0": 0,
    "1": 1,
    "2^31": 1 << 31,
    "2^63": 1 << 63,
    "2^64-1": (1 << 64) - 1,
    "100 MB and one": 100_000_001,
    "beyond the file": 99_999_999,
}.items():
    raw_header(f"length {_name}", lambda h: h, _size)


def tensor(name: str, **fields: Any) -> None:
    """Fields of one tensor's entry exchanged; ... removes one."""

    @case(f"safetensors tensor: {name}")
    def _(folder: Path) -> Path:
        header, data = split(folder)
        entry = header["model.norm.weight"]
        for key, value in fields.items():
            if value is ...:
                del entry[key]
            else:
                entry[key] = value(entry[key]) if callable(value) else value
        return write(folder, json.dumps(header).encode(), data)


for _value in ("F8", "f32", "", "float32", 0, None, [], {}, "F32\0", "BOOL", "I64", "U8", "F64"):
    tensor(f"dtype {_value!r}", dtype=_value)
for _value in (
    None,
    "72",
    72,
    {},
    [-72],
    [72.0],
    ["72"],
    [None],
    [[72]],
    [True],
    [],
    [71],
    [73],
    [0],
    [72, 1, 0],
    [1 << 63],
    [(1 << 63) - 1, 2],
    [1 << 62, 1 << 62, 4],
    [1 << 400],
    [1] * 65,
    [1] * 100_000,
):
    tensor(f"shape {repr(_value)[:24]} {len(repr(_value))}", shape=_value)
for _name, _value in {
    "reversed": lambda o: o[::-1],
    "one": lambda o: o[:1],
    "three": lambda o: [*o, o[1]],
    "none": [],
    "null": None,
    "text": "0,288",
    "floats": lambda o: [float(x) for x in o],
    "bools": [False, True],
    "negative": lambda o: [-o[1], -o[0]],
    "shifted": lambda o: [x + 4 for x in o],
    "overlap": lambda o: [x - 4 for x in o],
    "at the begin": lambda o: [0, o[1] - o[0]],
    "longer": lambda o: [o[0], o[1] + 4],
    "shorter": lambda o: [o[0], o[1] - 4],
    "beyond": lambda o: [x + (1 << 40) for x in o],
    "2^63": [1 << 63, (1 << 63) + 288],
    "2^64": [0, 1 << 64],
    "huge": lambda o: [o[0], 10**300],
}.items():
    tensor(f"offsets {_name}", data_offsets=_value)
for _field in ("dtype", "shape", "data_offsets"):
    tensor(f"no {_field}", **{_field: ...})
tensor("a field more", dtype=lambda d: d, shape=lambda s: s)
del CASES["safetensors tensor: a field more"]


def header_case(name: str, change: Callable[[dict[str, Any]], None]) -> None:
    @case(f"safetensors: {name}")
    def _(folder: Path) -> Path:
        header, data = split(folder)
        change(header)
        return write(folder, json.dumps(header).encode(), data)


for _name, _edit in {
    "a field more": lambda h: h["model.norm.weight"].update(stride=[1]),
    "entry null": lambda h: h.update({"model.norm.weight": None}),
    "entry a list": lambda h: h.update({"model.norm.weight": [1]}),
    "entry a text": lambda h: h.update({"model.norm.weight": "x"}),
    "metadata a list": lambda h: h.update({"__metadata__": []}),
    "metadata a number": lambda h: h.update({"__metadata__": {"a": 1}}),
    "metadata nested": lambda h: h.update({"__metadata__": {"a": {"b": "c"}}}),
    "a tensor gone": lambda h: h.pop("model.norm.weight"),
    "no tensor": lambda h: h.clear(),
    "a tensor renamed": lambda h: h.update(other=h.pop("model.norm.weight")),
    "an empty tensor more": lambda h: h.update(
        more={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    ),
    "a hundred thousand empty tensors": lambda h: h.update(
        {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(100_000)}
    ),
    "two tensors share bytes": lambda h: h.update(
        {"lm_head.weight": h["model.embed_tokens.weight"]}
    ),
}.items():
    header_case(_name, _edit)


def data_case(name: str, change: Callable[[bytes], bytes]) -> None:
    @case(f"safetensors file: {name}")
    def _(folder: Path) -> Path:
        (folder / ST).write_bytes(change((folder / ST).read_bytes()))
        return folder


for _name, _cut in {
    "empty": lambda b: b"",
    "a byte": lambda b: b[:1],
    "seven bytes": lambda b: b[:7],
    "eight bytes": lambda b: b[:8],
    "half": lambda b: b[: len(b) // 2],
    "a byte short": lambda b: b[:-1],
    "a byte long": lambda b: b + b"\0",
    "twice": lambda b: b + b,
    "zeros": lambda b: bytes(len(b)),
    "a zip": lambda b: b"PK\x03\x04" + b[4:],
    "a gguf": lambda b: b"GGUF" + b[4:],
}.items():
    data_case(_name, _cut)


def special(name: str, make: Callable[[Path], None], file: str = ST, via: str = "") -> None:
    @case(f"{file}: {name}")
    def _(folder: Path) -> Path:
        (folder / file).unlink()
        make(folder / file)
        return folder / via if via else folder


def _outside(path: Path) -> None:
    target = path.parent.parent / "outside"
    target.write_bytes(b"\2\0\0\0\0\0\0\0{}")
    path.symlink_to(target)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the address has room for a hundred characters
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a directory": lambda p: p.mkdir(),
    "a fifo": lambda p: os.mkfifo(p),
    "a socket": _socket,
    "a link to a device": lambda p: p.symlink_to("/dev/zero"),
    "a link to itself": lambda p: p.symlink_to(p.name),
    "a link to nothing": lambda p: p.symlink_to("nowhere"),
    "a link out of the directory": _outside,
    "a link up": lambda p: p.symlink_to("../../../../../../etc/passwd"),
    "a link to proc": lambda p: p.symlink_to("/proc/self/mem"),
}
for _name, _make in SPECIAL.items():
    special(_name, _make)
    special(_name, _make, "config.json")
    special(_name, _make, "tokenizer.json")
for _name in ("a directory", "a fifo", "a socket", "a link to a device", "a link to itself"):
    special(_name, SPECIAL[_name], "model.gguf", "model.gguf")


# -- the index -----------------------------------------------------------------------------------


def index(name: str, change: Callable[[dict[str, Any]], Any], raw: bytes | None = None) -> None:
    @case(f"index: {name}")
    def _(folder: Path) -> Path:
        header, _ = split(folder)
        shard = "model-00001-of-00001.safetensors"
        (folder / ST).rename(folder / shard)
        value: Any = {"metadata": {}, "weight_map": {n: shard for n in header if n[0] != "_"}}
        changed = change(value)
        text = json.dumps(value if changed is None else changed).encode()
        (folder / "model.safetensors.index.json").write_bytes(text if raw is None else raw)
        return folder


for _name, _edit in {
    "no weight_map": lambda v: v.pop("weight_map") and None,
    "weight_map null": lambda v: {"weight_map": None},
    "weight_map a list": lambda v: {"weight_map": list(v["weight_map"])},
    "weight_map empty": lambda v: {"weight_map": {}},
    "a list": lambda v: [v],
    "a file number": lambda v: v["weight_map"].update({"model.norm.weight": 7}),
    "a parent folder": lambda v: v["weight_map"].update({"model.norm.weight": "../x.safetensors"}),
    "an absolute path": lambda v: v["weight_map"].update({"model.norm.weight": "/x.safetensors"}),
    "a subfolder": lambda v: v["weight_map"].update({"model.norm.weight": "a/x.safetensors"}),
    "a windows path": lambda v: v["weight_map"].update({"model.norm.weight": "a\\x.safetensors"}),
    "a nul": lambda v: v["weight_map"].update({"model.norm.weight": "x\0.safetensors"}),
    "a pickle": lambda v: v["weight_map"].update({"model.norm.weight": "x.bin"}),
    "config.json": lambda v: v["weight_map"].update({"model.norm.weight": "config.json"}),
    "an empty name": lambda v: v["weight_map"].update({"model.norm.weight": ""}),
    "a shard that is not there": lambda v: v["weight_map"].update(
        {"model.norm.weight": "model-00002-of-00002.safetensors"}
    ),
    "a tensor too many": lambda v: v["weight_map"].update(
        {"x": "model-00001-of-00001.safetensors"}
    ),
    "a tensor too few": lambda v: v["weight_map"].pop("model.norm.weight") and None,
    "five thousand shards": lambda v: v["weight_map"].update(
        {f"t{n}": f"s{n}.safetensors" for n in range(5000)}
    ),
    "lone surrogate": lambda v: v["weight_map"].update({"\ud800": "x.safetensors"}),
}.items():
    index(_name, _edit)
for _name, _raw in {
    "empty": b"",
    "not json": b"{",
    "invalid utf-8": b'{"weight_map": {"a": "\xff.safetensors"}}',
    "nested": b'{"weight_map": ' + DEEP.encode() + b"}",
    "NaN": b'{"weight_map": {}, "metadata": NaN}',
    "a key twice": b'{"weight_map": {"a": "b.safetensors"}, "weight_map": {}}',
}.items():
    index(f"raw {_name}", lambda v: None, _raw)


# -- config.json ---------------------------------------------------------------------------------


def config(name: str, **fields: Any) -> None:
    @case(f"config: {name}")
    def _(folder: Path) -> Path:
        value = json.loads((folder / "config.json").read_text())
        for key, field in fields.items():
            if field is ...:
                value.pop(key, None)
            else:
                value[key] = field
        (folder / "config.json").write_text(json.dumps(value))
        return folder


for _field in ("hidden_size", "num_hidden_layers", "vocab_size", "num_local_experts"):
    for _value in (..., 0, -1, 1.5, "8", True, [], 1 << 40, 1 << 63, 10**30, float("nan")):
        shown = "gone" if _value is ... else repr(_value)
        config(f"{_field} {shown}", **{_field: _value})
for _field, _value in {
    "num_attention_heads": 5,
    "num_key_value_heads": 2,
    "head_dim": 3,
    "intermediate_size": 41,
    "num_experts_per_tok": 6,
    "rms_norm_eps": 0,
    "rope_parameters": [1],
    "hidden_act": "sigmoid",
    "tie_word_embeddings": "no",
    "sliding_window": -4,
    "model_type": "../mixtral",
    "quantization_config": {"quant_method": "bitsandbytes"},
}.items():
    config(f"{_field} {_value}", **{_field: _value})
config("model_type gone", model_type=...)
config("model_type a list", model_type=["mixtral"])
config("model_type of another family", model_type="qwen3_moe")
config("rope of no kind", rope_parameters={"rope_type": "spiral", "rope_theta": 1e4})
config("rope theta negative", rope_parameters={"rope_type": "default", "rope_theta": -1e4})
config("rope factor text", rope_parameters={"rope_type": "linear", "factor": "2"})
config("layers for years", num_hidden_layers=10**6)
config("gptq without tensors", quantization_config={"quant_method": "gptq", "bits": 5})
config("auto_map", auto_map={"AutoModel": "evil.Model"}, model_type="evil")


def raw_config(name: str, data: bytes, file: str = "config.json") -> None:
    @case(f"{file}: {name}")
    def _(folder: Path) -> Path:
        (folder / file).write_bytes(data)
        return folder


for _file in ("config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json"):
    for _name, _raw in {
        "empty": b"",
        "an array": b"[]",
        "cut": b'{"model_type": "mixtral',
        "invalid utf-8": b'{"model_type": "\xff"}',
        "nested": b'{"a": ' + DEEP.encode() + b"}",
        "NaN": b'{"hidden_size": NaN}',
        "a key twice": b'{"model_type": "mixtral", "model_type": "mixtral"}',
    }.items():
        # A tokenizer's own parser takes NaN and keys twice for other faults.
        raw_config(_name, _raw, _file)
raw_config("nine megabytes", b'{"a": "' + b"x" * (9 << 20) + b'"}')
raw_config("an end that is text", b'{"eos_token_id": "end"}', "generation_config.json")


@case("config.json: gone")
def _(folder: Path) -> Path:
    (folder / "config.json").unlink()
    return folder


@case("weights: gone")
def _(folder: Path) -> Path:
    (folder / ST).unlink()
    (folder / "model.gguf").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return folder


@case("path: nothing there")
def _(folder: Path) -> Path:
    return folder / "nowhere"


@case("path: a text file")
def _(folder: Path) -> Path:
    (folder / "x.txt").write_text("hello")
    return folder / "x.txt"


# -- GGUF ----------------------------------------------------------------------------------------


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
