"""Writing safetensors: one tensor in memory at a time, and never half a file under its name.

A file is written beside its target, flushed to the disk and then moved over it, so that a reader
finds the old file or the new one whatever happens meanwhile.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from .directory import INDEX, SINGLE
from .source import Array, quoted
from .storage import SAFETENSORS
from .strict_json import is_text
from .target import replacing, sync_folder, write_all

# Where the data begins: a multiple of this, for those who map files into memory.
_DATA_ALIGNMENT = 64
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_DTYPES = {row.dtype: row.name for row in SAFETENSORS.values()}
# What a file is to hold: dtype by its name in the format, and shape.
Specs = Mapping[str, tuple[str, Sequence[int]]]


def dtype_name(array: Array) -> str:
    """The format's name for an array's dtype ("BF16"); TypeError if it has none."""
    name = _DTYPES.get(array.dtype)
    if name is None:
        known = " ".join(str(dtype) for dtype in _DTYPES)
        raise TypeError(f"[write_safetensors] dtype {array.dtype}; one of {known} is required")
    return name


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays that are in memory already; see `stream_safetensors`."""
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    specs = {name: (dtype_name(array), array.shape) for name, array in arrays.items()}
    stream_safetensors(path, specs, arrays.items(), metadata)


def stream_safetensors(
    path: str | os.PathLike[str],
    specs: Specs,
    arrays: Iterable[tuple[str, Array]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the tensors that `specs` announces, taking them from `arrays` one at a time.

    `arrays` yields every name once, in any order. ValueError or TypeError for an array that is
    not as announced, one that nobody announced or one that is missing; then, as after any error,
    nothing is left behind and a file that was there before stays as it was.
    """
    header, offsets, end = _layout(specs, metadata)
    pending = dict(offsets)
    with replacing(os.fsdecode(path)) as fd:
        write_all(fd, header, 0)
        # Empty tensors at the end or not: the file has its size before the data comes.
        os.truncate(fd, end)
        for name, array in arrays:
            if name not in pending:
                fault = "twice" if name in offsets else "though not announced"
                raise ValueError(f"[write_safetensors] tensor {quoted(name)} came {fault}")
            write_all(fd, _stored_bytes(name, array, *specs[name]), pending.pop(name))
        if pending:
            raise ValueError(f"[write_safetensors] tensor {quoted(min(pending))} did not come")


def write_model(
    directory: str | os.PathLike[str],
    specs: Specs,
    arrays: Iterable[tuple[str, Array]],
    *,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a model's weights as Hugging Face names them, `arrays` in the order of `specs`.

    One `model.safetensors` if all fits into `shard_bytes`, else `model-00001-of-0000N.safetensors`
    and so on with their index. All is written into a folder inside of `directory` first; only
    when it is whole do the files take their places, and those of an earlier model, which might be
    read in their stead, are removed.
    """
    folder = os.fsdecode(directory)
    shards = _shards(specs, shard_bytes)
    count = len(shards)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    names = [SINGLE] if count == 1 else names
    source = iter(arrays)
    stage = os.path.join(folder, f".model.{secrets.token_hex(6)}.tmp")
    os.mkdir(stage)
    try:
        for name, shard in zip(names, shards, strict=True):
            part = islice(source, len(shard))
            stream_safetensors(os.path.join(stage, name), shard, part, {"format": "pt"})
        extra = next(source, None)
        if extra is not None:
            raise ValueError(f"[write_model] tensor {quoted(extra[0])} came though not announced")
        if count > 1:
            _write_index(os.path.join(stage, INDEX), specs, dict(zip(names, shards, strict=True)))
            names.append(INDEX)
        for name in names:
            os.replace(os.path.join(stage, name), os.path.join(folder, name))
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    _remove_stale(folder, set(names))
    sync_folder(folder)


def _write_index(path: str, specs: Specs, shards: Mapping[str, Specs]) -> None:
    total = sum(_nbytes(name, *spec) for name, spec in specs.items())
    weight_map = {tensor: name for name, shard in shards.items() for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
    with replacing(path) as fd:
        write_all(fd, text.encode(), 0)


def _shards(specs: Specs, shard_bytes: int) -> list[Specs]:
    shards: list[dict[str, tuple[str, Sequence[int]]]] = [{}]
    held = 0
    for name, spec in specs.items():
        nbytes = _nbytes(name, *spec)
        if shards[-1] and held + nbytes > shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = spec
        held += nbytes
    return list(shards)


def _remove_stale(folder: str, written: set[str]) -> None:
    for name in os.listdir(folder):
        ours = name in (SINGLE, INDEX) or _SHARD.fullmatch(name)
        if ours and name not in written:
            os.remove(os.path.join(folder, name))


def _nbytes(name: str, dtype: str, shape: Sequence[int]) -> int:
    storage = SAFETENSORS.get(dtype)
    if storage is None:
        known = " ".join(SAFETENSORS)
        raise ValueError(f"[write_safetensors] {quoted(name)} is {dtype}; known are {known}")
    try:
        return storage.nbytes(shape)
    except ValueError as problem:
        raise ValueError(f"[write_safetensors] tensor {quoted(name)} {problem}") from None


def _layout(specs: Specs, metadata: Mapping[str, str] | None) -> tuple[bytes, dict[str, int], int]:
    """(the bytes before the data, where each tensor begins, where the file ends)."""
    header: dict[str, Any] = {}
    if metadata:
        if not all(is_text(key) and is_text(value) for key, value in metadata.items()):
            raise TypeError("[write_safetensors] metadata is not text to text")
        header["__metadata__"] = dict(metadata)
    # Wide elements first: then every tensor is aligned to its elements without gaps.
    order = sorted(specs, key=lambda name: -_itemsize(name, specs[name][0]))
    begins: dict[str, int] = {}
    position = 0
    for name in order:
        dtype, shape = specs[name]
        if not is_text(name) or name == "__metadata__":
            raise ValueError(f"[write_safetensors] a tensor cannot be named {quoted(str(name))}")
        begins[name] = position
        position += _nbytes(name, dtype, shape)
        header[name] = {
            "dtype": dtype,
            "shape": [int(size) for size in shape],
            "data_offsets": [begins[name], position],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _DATA_ALIGNMENT)
    data_begin = 8 + len(text)
    offsets = {name: data_begin + begin for name, begin in begins.items()}
    return len(text).to_bytes(8, "little") + text, offsets, data_begin + position


def _itemsize(name: str, dtype: str) -> int:
    _nbytes(name, dtype, (0,))
    return SAFETENSORS[dtype].block_bytes


def _stored_bytes(name: str, array: Array, dtype: str, shape: Sequence[int]) -> memoryview:
    array = np.asarray(array)
    if dtype_name(array) != dtype or array.shape != tuple(shape):
        raise ValueError(
            f"[write_safetensors] tensor {quoted(name)} is {dtype_name(array)} "
            f"{list(array.shape)}; {dtype} {list(shape)} was announced"
        )
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if dtype == "F4":
        return ((raw[0::2] & 15) | (raw[1::2] << 4)).astype(np.uint8).data
    return raw.data
