"""More hostile model files, for `malformed_files.CASES`: special files in every place, holes of
terabytes, shards that contradict each other, tokenizers and GGUF files built from nothing."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf_bytes import array, gguf_file, info, pair, scalar, text, u32, u64
from malformed_files import CASES, ST, case, split, write
from malformed_safetensors import SPECIAL

INDEX = "model.safetensors.index.json"
HOLE = 1 << 40


# -- small files ---------------------------------------------------------------------------------


def _hole(size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(b"{")
        os.truncate(path, size)

    return make


SMALL = {
    **{name: SPECIAL[name] for name in ("a fifo", "a directory", "a link to itself", "a link up")},
    "a link to a device": SPECIAL["a link to a device"],
    "a hole of 2^40": _hole(HOLE),
    "a hole of 300 MB": _hole(300 << 20),
    "empty": lambda path: path.write_bytes(b""),
    "a nul": lambda path: path.write_bytes(b"\0"),
}


def small(file: str, name: str, make: Callable[[Path], Any]) -> None:
    @case(f"{file} is {name}")
    def _(folder: Path) -> Path:
        (folder / file).unlink(missing_ok=True)
        if file == INDEX:
            (folder / ST).unlink()
        if file == "chat_template.json":
            (folder / "chat_template.jinja").unlink(missing_ok=True)
        make(folder / file)
        return folder


for _file in (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
    "moekit.json",
    INDEX,
):
    for _name, _make in SMALL.items():
        if _file != "chat_template.jinja" or _name not in ("empty", "a nul"):  # texts they are
            small(_file, _name, _make)
for _name in ("a hole of 2^40", "a hole of 300 MB"):
    small("config.json", _name, SMALL[_name])
    small("tokenizer.json", _name, SMALL[_name])


# -- weights with holes --------------------------------------------------------------------------


@case("safetensors: a hole of 2^40 behind the tensors")
def _(folder: Path) -> Path:
    os.truncate(folder / ST, HOLE)
    return folder


def table(name: str, shape: list[int], told: bool) -> None:
    """A table of embeddings whose terabytes the file really has."""

    @case(f"safetensors: a table of {name}, config.json {'agrees' if told else 'does not'}")
    def _(folder: Path) -> Path:
        size = 4 * shape[0] * shape[1]
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
        write(folder, json.dumps({"model.embed_tokens.weight": entry}).encode(), b"")
        os.truncate(folder / ST, (folder / ST).stat().st_size + size)
        if told:
            config = json.loads((folder / "config.json").read_text())
            config |= {"vocab_size": shape[0], "hidden_size": shape[1]}
            (folder / "config.json").write_text(json.dumps(config))
        return folder


for _told in (False, True):
    table("2^34 rows", [1 << 34, 72], _told)
    table("2^33 columns", [320, 1 << 33], _told)


def hole(name: str, value: bytes, size: int = HOLE, tensors: int = 0, pairs: int = 1) -> None:
    @case(f"gguf: a hole behind {name}")
    def _(folder: Path) -> Path:
        path = folder / "model.gguf"
        path.write_bytes(b"GGUF" + u32(3) + u64(tensors) + u64(pairs) + value)
        os.truncate(path, size)
        return path


hole("a text of 2^39", text("a") + u32(8) + u64(1 << 39))
hole("2^36 texts", text("a") + u32(9) + u32(8) + u64(1 << 36))
hole("2^39 bytes", text("a") + u32(9) + u32(0) + u64(1 << 39))
hole("2^19 tensors", b"", tensors=1 << 19, pairs=0)
hole("12 million empty texts", text("tokens") + u32(9) + u32(8) + u64(12 << 20), 110 << 20)


# -- shards --------------------------------------------------------------------------------------

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Shards = dict[str, tuple[dict[str, Any], bytes]]


def sharded(name: str) -> Callable[[Callable[[Path, Shards, dict[str, Any]], Any]], None]:
    """The sound tensors in two shards; what the function returns is written as the index."""

    def keep(change: Callable[[Path, Shards, dict[str, Any]], Any]) -> None:
        @case(f"shards: {name}")
        def _(folder: Path) -> Path:
            header, data = split(folder)
            header.pop("__metadata__", None)
            names = list(header)
            shards: Shards = {}
            for file, part in ((FIRST, names[::2]), (SECOND, names[1::2])):
                entries: dict[str, Any] = {}
                blob = b""
                for tensor in part:
                    begin, end = header[tensor]["data_offsets"]
                    place = [len(blob), len(blob) + end - begin]
                    entries[tensor] = {**header[tensor], "data_offsets": place}
                    blob += data[begin:end]
                shards[file] = (entries, blob)
            places = {n: file for file, (entries, _) in shards.items() for n in entries}
            index: dict[str, Any] = {"metadata": {}, "weight_map": places}
            (folder / ST).unlink()
            raw = change(folder, shards, index)
            for file, (entries, blob) in shards.items():
                head = json.dumps(entries).encode()
                (folder / file).write_bytes(len(head).to_bytes(8, "little") + head + blob)
            (folder / INDEX).write_text(json.dumps(index) if raw is None else raw)
            return folder

    return keep


def _more(shards: Shards, file: str, name: str) -> None:
    entries, blob = shards[file]
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [len(blob), len(blob) + 4]}
    shards[file] = ({**entries, name: entry}, blob + bytes(4))


@sharded("a tensor in both")
def _(folder: Path, shards: Shards, index: dict[str, Any]) -> None:
    _more(shards, SECOND, next(iter(shards[FIRST][0])))


@sharded("a tensor that nobody knows")
def _(folder: Path, shards: Shards, index: dict[str, Any]) -> None:
    _more(shards, SECOND, "foreign")
    index["weight_map"]["foreign"] = SECOND


@sharded("the index names the other one")
def _(folder: Path, shards: Shards, index: dict[str, Any]) -> None:
    index["weight_map"][next(iter(shards[FIRST][0]))] = SECOND


@sharded("one gone")
def _(folder: Path, shards: Shards, index: dict[str, Any]) -> None:
    del shards[SECOND]


@sharded("one empty")
def _(folder: Path, shards: Shards, index: dict[str, Any]) -> None:
    shards[SECOND] = ({}, b"")


@sharded("a name twice in the index")
def _(folder: Path, shards: Shards, index: dict[str, Any]) -> str:
    again = f'"weight_map": {{"{next(iter(shards[FIRST][0]))}": "{SECOND}", '
    return json.dumps(index).replace('"weight_map": {', again, 1)


for _name, _make in SPECIAL.items():

    @sharded(f"one is {_name}")
    def _(folder: Path, shards: Shards, index: dict[str, Any], make: Any = _make) -> None:
        del shards[SECOND]
        make(folder / SECOND)


# -- safetensors ---------------------------------------------------------------------------------


def renamed(name: str, new: str, **fields: Any) -> None:
    @case(f"safetensors: {name}")
    def _(folder: Path) -> Path:
        header, data = split(folder)
        header[new] = {**header.pop("model.norm.weight"), **fields}
        return write(folder, json.dumps(header).encode(), data)


for _new in ("", "x" * (1 << 20), "model.norm.weight\0", "../../x", "model.norm.we\u0131ght"):
    renamed(f"a name of {len(_new)} characters, {_new[:20]!a}", _new)
for _new in ("zz.scale", "zz.qweight", "zz_blocks", "zz.g_idx", "model.norm.weight_scale_inv"):
    renamed(f"a lone {_new}", _new)
for _dtype, _shape in {
    "F4": [576],
    "F8_E4M3": [288],
    "F8_E8M0": [288],
    "C64": [36],
    "BF16": [1, 1, 1, 2, 72],
}.items():
    renamed(f"a norm in {_dtype}", "model.norm.weight", dtype=_dtype, shape=_shape)


def raw(name: str, change: Callable[[str], bytes]) -> None:
    @case(f"safetensors raw: {name}")
    def _(folder: Path) -> Path:
        header, data = split(folder)
        return write(folder, change(json.dumps(header)), data)


raw(
    "a name twice, once escaped",
    lambda h: (h[:-1] + ', "model\\u002enorm.weight": {"dtype": "F32"}}').encode(),
)
raw("a surrogate in UTF-8", lambda h: h.encode().replace(b"model.norm", b"model.\xed\xa0\x80", 1))
raw("overlong UTF-8", lambda h: h.encode().replace(b"model.norm", b"model\xc0\xaenorm", 1))
raw(
    "four million sizes",
    lambda h: h.replace('"shape": [', '"shape": [' + "1," * (4 << 20), 1).encode(),
)
raw("120 MB of spaces", lambda h: h.encode() + b" " * (120 << 20))


# -- tokenizers ----------------------------------------------------------------------------------


def tokenizer(name: str, **changes: Any) -> None:
    @case(f"tokenizer: {name}")
    def _(folder: Path) -> Path:
        path = folder / "tokenizer.json"
        value = json.loads(path.read_text())
        for key, part in changes.items():
            value[key] = {**value[key], **part} if key == "model" else part
        path.write_text(json.dumps(value))
        return folder


tokenizer("a model nobody knows", model={"type": "Evil"})
tokenizer("merges of nothing", model={"merges": [["q1", "q2"]]})
tokenizer("merges a number", model={"merges": 7})
tokenizer("a vocabulary of negative ids", model={"vocab": {"a": -1}})
tokenizer("a vocabulary that is a list", model={"vocab": [1]})
tokenizer(
    "an expression that is none",
    pre_tokenizer={"type": "Split", "pattern": {"Regex": "(((("}, "behavior": "Isolated"},
)
for _table in ("AAAA", "/////w==", "?", "", "BAAAAAAAAAD/"):
    _charsmap = {"type": "Precompiled", "precompiled_charsmap": _table}
    tokenizer(f"replacements {_table!r}", normalizer=_charsmap)
    tokenizer(
        f"replacements {_table!r} in a sequence",
        normalizer={"type": "Sequence", "normalizers": [_charsmap]},
    )


@case("tokenizer: replacements under an escaped name")
def _(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    value["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "/////w=="}
    path.write_text(json.dumps(value).replace("Precompiled", "\\u0050recompiled"))
    return folder


# -- GGUF from nothing ---------------------------------------------------------------------------

LLAMA = pair("general.architecture", 8, text("llama"))


def built(name: str, *pairs: bytes, infos: tuple[bytes, ...] = (info(),), **more: Any) -> None:
    @case(f"gguf built: {name}")
    def _(folder: Path) -> Path:
        path = folder / "model.gguf"
        path.write_bytes(gguf_file(pairs, infos, bytes(256), **more))
        return path


for _value in (0, 3, 33, 1 << 21, 1 << 31, (1 << 32) - 1):
    built(f"alignment {_value}", LLAMA, scalar("general.alignment", 4, _value))
built("alignment a float", LLAMA, scalar("general.alignment", 6, 32.0))
built("alignment a bool", LLAMA, scalar("general.alignment", 7, True))
built("alignment a text", LLAMA, pair("general.alignment", 8, text("32")))
built("alignment negative", LLAMA, scalar("general.alignment", 11, -32))
for _value in (0, 1, 4, 1 << 16, 2 << 24, 3 << 24, (1 << 32) - 1):
    built(f"version {_value}", LLAMA, version=_value)
for _value in (0, 5, 255, (1 << 32) - 1):
    built(f"{_value} dimensions", LLAMA, infos=(info(dims=_value),))
for _value in (4, 5, 31, 33, 36, 38, 99, 1 << 16, (1 << 32) - 1):
    built(f"type {_value}", LLAMA, infos=(info(kind=_value),))
for _shape in ((0, 8), (1 << 63,), (1 << 32, 1 << 32), (1 << 16,) * 4):
    built(f"shape {_shape}", LLAMA, infos=(info(shape=_shape),))
built("cut blocks", LLAMA, infos=(info(shape=(33,), kind=8),))
built("an overlap", LLAMA, infos=(info("a", (16,)), info("b", (16,), offset=32)))
built("an offset twice", LLAMA, infos=(info("a"), info("b")))
built("a name twice", LLAMA, infos=(info("a"), info("a", offset=32)))
built("an offset that wraps", LLAMA, infos=(info(offset=(1 << 64) - 32),))
built("a key twice", LLAMA, LLAMA)
built("no architecture")
built("an architecture that is a number", scalar("general.architecture", 4, 3))
built("an architecture of a megabyte", pair("general.architecture", 8, text("x" * (1 << 20))))
built("a key with a nul", pair(b"a\0b", 4, u32(1)))
built("a bool of 2", pair("a", 7, b"\2"), LLAMA)
built("an array of type 13", pair("a", 9, array(13, 1, bytes(8))), LLAMA)
built("70000 arrays", pair("a", 9, array(9, 70_000, array(8, 0, b"") * 70_000)), LLAMA)
built("a set of 65535 parts", LLAMA, scalar("split.count", 2, 65_535))
built("a set of -1 parts", LLAMA, scalar("split.count", 3, -1))
built("a set of '2' parts", LLAMA, pair("split.count", 8, text("2")))


@case("gguf built: big-endian throughout")
def _(folder: Path) -> Path:
    head = struct.pack(">IQQQ", 3, 1, 1, 20) + b"general.architecture"
    path = folder / "model.gguf"
    path.write_bytes(b"GGUF" + head + struct.pack(">IQ", 8, 5) + b"llama" + bytes(300))
    return path


def vocabulary(name: str, **fields: Any) -> None:
    """The sound GGUF file with other keys of its tokenizer."""

    @case(f"gguf vocabulary: {name}")
    def _(folder: Path) -> Path:
        import moekit as mk

        path = folder / "model.gguf"
        with mk.checkpoint.open(path) as file:
            specs = {n: (file.info(n).dtype, file.info(n).shape) for n in file}
            arrays = [(n, file[n]) for n in file]
            more = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
            metadata = {**file.metadata, **more}
        mk.checkpoint.write_gguf(path, metadata, specs, arrays)
        return path


_PAIR = {"model": "llama", "tokens": ["a", "b"], "scores": np.float32([1, 2])}
vocabulary("tokens are numbers", model="gpt2", tokens=np.arange(5, dtype=np.int32))
vocabulary("no tokens", model="gpt2")
vocabulary("a token twice", model="gpt2", tokens=["a", "a"], merges=["a a"])
vocabulary("merges in a circle", model="gpt2", tokens=["a", "b"], merges=["a b", "b a"])
vocabulary("a merge of one", model="gpt2", tokens=["a", "b"], merges=["ab"])
vocabulary("a splitting nobody knows", model="gpt2", tokens=["a"], merges=[], pre="evil")
vocabulary("a model nobody knows", model="rwkv", tokens=["a"])
vocabulary("a score that is no number", **{**_PAIR, "scores": np.float32([np.nan, 1])})
vocabulary("a score less", **{**_PAIR, "scores": np.float32([1])})
vocabulary("kinds that are texts", **_PAIR, token_type=["a", "b"])
vocabulary("a first token beyond", **_PAIR, bos_token_id=np.uint32((1 << 32) - 1))
vocabulary("a token of 200,000 letters", **{**_PAIR, "tokens": ["a" * 200_000, "a"]})
vocabulary(
    "tokens of 1 to 3000 letters",
    model="llama",
    tokens=["a" * n for n in range(1, 3001)],
    scores=np.arange(3000, dtype=np.float32),
)
for _bytes in (b"\xff" * 9, b"\0" * 4, b"\4\0\0\0" + b"\0" * 4 + b"\xff"):
    vocabulary(
        f"replacements {_bytes!r}",
        **{**_PAIR, "model": "t5"},
        unknown_token_id=np.uint32(0),
        precompiled_charsmap=np.frombuffer(_bytes, np.uint8),
    )


# -- moekit's own layout -------------------------------------------------------------------------


def packed(name: str, **fields: Any) -> None:
    @case(f"moekit.json: {name}")
    def _(folder: Path) -> Path:
        document = {"layout": "moekit packed", "version": 1, "weights": {}, "outline": {}}
        (folder / "moekit.json").write_text(json.dumps({**document, **fields}))
        return folder


_SHARD = "packed-00000.safetensors"
packed("of another version", version=99)
packed("without anything")
packed("weights a list", weights=[])
_OUTLINE = {"model.embed_tokens.weight": ["F32", [1 << 62, 1 << 62]]}
packed("an outline of terabytes", outline=_OUTLINE)
_WEIGHT = {"file": _SHARD, "format": "int4", "shape": [9, 1 << 60]}
packed("a weight of terabytes", weights={"a": _WEIGHT})
packed("a file outside", weights={"a": {"file": "../x.safetensors", "format": "", "shape": [1]}})


# -- paths ---------------------------------------------------------------------------------------

for _path in ("/dev/null", "", "a\0b", "\udcff.gguf", "/proc/self/fd", "/dev/stdin", "a" * 300):
    CASES[f"path: {_path[:20]!a}"] = lambda folder, path=_path: path
for _end in (".gguf", ".safetensors"):
    for _name in ("a fifo", "a directory", "a link to a device"):

        @case(f"path: {_name} called x{_end}")
        def _(folder: Path, name: str = _name, end: str = _end) -> Path:
            SPECIAL[name](folder / f"x{end}")
            return folder / f"x{end}"
