"""Broken safetensors files and their index, for `malformed_files.CASES`."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from malformed_files import CASES, DEEP, ST, case, split, write


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
