"""A checkpoint directory as Hugging Face lays it out: its weights and its small text files.

The directory's files may be links only into the directory itself or, in a snapshot of the
Hugging Face cache, into its `blobs`. Pickled weights (`.bin`, `.pt`) are never read.
"""

import os
from collections.abc import Iterable
from itertools import islice
from typing import cast

from ..errors import FileError
from .gguf import open_gguf_splits, split_number
from .safetensors import open_safetensors
from .source import SourceFile, allowed_folders, quoted
from .strict_json import is_text, parse_object
from .tensors import Checkpoint, join

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 64 << 20
MAX_CONFIG_BYTES = 8 << 20
# Each shard keeps a file descriptor; the largest published checkpoints have about 200.
MAX_SHARDS = 2048
MAX_LISTED = 10_000


def is_plain_name(name: str) -> bool:
    """True for the name of a file in the directory itself, whatever the separators."""
    return is_text(name) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _path_in(directory: str | os.PathLike[str], name: str) -> str:
    folder = os.fsdecode(directory)
    if not is_plain_name(name):
        raise FileError(
            f"[checkpoint] {folder}: file {quoted(name)}; a plain file name is required"
        )
    return os.path.join(folder, name)


def has_file(directory: str | os.PathLike[str], name: str) -> bool:
    """True if the directory has an entry of that name, whatever it is."""
    return os.path.lexists(_path_in(directory, name))


def read_bytes(directory: str | os.PathLike[str], name: str, limit: int) -> bytes:
    """A whole small file of the directory; FileError if it has more than `limit` bytes."""
    path = _path_in(directory, name)
    source = SourceFile(path, "checkpoint", allowed_folders(os.fsdecode(directory)))
    try:
        if source.size > limit:
            raise source.error(f"has {source.size} bytes; at most {limit} are read")
        return bytes(source.read(0, source.size))
    finally:
        source.close()


def read_text(directory: str | os.PathLike[str], name: str, limit: int) -> str:
    """A small UTF-8 text file of the directory, such as `tokenizer.json` or a chat template."""
    data = read_bytes(directory, name, limit)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        path = _path_in(directory, name)
        raise FileError(f"[checkpoint] {path}: is not UTF-8 at byte {error.start}") from error


def read_json(
    directory: str | os.PathLike[str], name: str, limit: int = MAX_CONFIG_BYTES
) -> dict[str, object]:
    """A JSON object of the directory; repeated keys, NaN and more than 64 levels are refused.

    Infinity is read as transformers writes it, bare or as `{"__float__": "Infinity"}`.
    """
    path = _path_in(directory, name)
    data = read_bytes(directory, name, limit)

    def error(problem: str) -> FileError:
        return FileError(f"[checkpoint] {path}: {problem}")

    value = parse_object(data, error, "the file", infinity=True)
    return cast("dict[str, object]", _with_floats(value))


def _with_floats(value: object) -> object:
    if isinstance(value, dict):
        if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity"):
            return float(cast("str", value["__float__"]))
        return {key: _with_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    return value


def read_config(directory: str | os.PathLike[str]) -> dict[str, object]:
    """`config.json` of a checkpoint directory; see `read_json`."""
    return read_json(directory, "config.json")


def open_model(path: str | os.PathLike[str]) -> Checkpoint:
    """The weights that a user's path means: a directory, or a `.gguf` or `.safetensors` file.

    The first file of a split GGUF set (`x-00001-of-00003.gguf`) stands for the whole set, whose
    other files may be links only as those of a directory may.
    """
    name = os.fsdecode(path)
    if name.endswith(".safetensors"):
        return open_safetensors(SourceFile(name, "safetensors"))
    if not name.endswith(".gguf"):
        return open_directory(name)
    return open_gguf_splits(name, allowed_folders(os.path.dirname(name)))


def open_directory(path: str | os.PathLike[str]) -> Checkpoint:
    """The weights of a directory as one checkpoint.

    `model.safetensors` is read if there is one (as transformers does), else the shards that
    `model.safetensors.index.json` names, else the one GGUF file or split set that is there.
    Index and shards must agree tensor by tensor.
    """
    folder = os.fsdecode(path)
    if not os.path.isdir(folder):
        raise FileError(
            f"[checkpoint] {folder}: is no directory; a checkpoint directory is required"
        )
    if has_file(folder, SINGLE):
        file = _path_in(folder, SINGLE)
        return open_safetensors(SourceFile(file, "safetensors", allowed_folders(folder)))
    if has_file(folder, INDEX):
        return _open_shards(folder)
    names = _names(folder)
    # The other parts of a split set are found from its first one.
    models = [name for name in names if name.endswith(".gguf") and split_number(name) <= 1]
    if len(models) == 1:
        folders = allowed_folders(folder)
        return open_gguf_splits(_path_in(folder, models[0]), folders, first_folders=folders)
    if models:
        raise FileError(
            f"[checkpoint] {folder}: several GGUF models, {_listing(models)}; name one of them"
        )
    raise FileError(
        f"[checkpoint] {folder}: no weights among {_listing(names)}; "
        f"{SINGLE}, {INDEX} or a .gguf file is required"
    )


def _names(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in islice(entries, MAX_LISTED))
    except OSError as error:
        raise FileError(
            f"[checkpoint] {folder}: its files cannot be listed: {error.strerror}"
        ) from error


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (" ".join(quoted(name) for name in names[:8]) or "no files") + more


def _read_weight_map(folder: str) -> dict[str, str]:
    path = _path_in(folder, INDEX)

    def error(problem: str) -> FileError:
        return FileError(f"[safetensors] {path}: {problem}")

    index = parse_object(read_bytes(folder, INDEX, MAX_INDEX_BYTES), error, "the index")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        found = "empty" if weight_map == {} else f"a {type(weight_map).__name__}"
        raise error(f"weight_map is {found}; an object from tensor to file name is required")
    for name, shard in weight_map.items():
        if not (is_text(name) and isinstance(shard, str)):
            raise error(f"weight_map {quoted(name)} is not text; a file name is required")
        if not (is_plain_name(shard) and shard.endswith(".safetensors")):
            raise error(
                f"tensor {quoted(name)} lies in {quoted(shard)}; "
                "a .safetensors file of the directory itself is required"
            )
    return cast("dict[str, str]", weight_map)


def _open_shards(folder: str) -> Checkpoint:
    weight_map = _read_weight_map(folder)
    shards = sorted(set(weight_map.values()))
    if len(shards) > MAX_SHARDS:
        raise FileError(
            f"[safetensors] {folder}: {len(shards)} shards; at most {MAX_SHARDS} are read"
        )
    for shard in shards:
        if not has_file(folder, shard):
            raise FileError(
                f"[safetensors] {folder}: shard {quoted(shard)} is missing; {INDEX} names it"
            )
    parts: list[Checkpoint] = []
    try:
        for shard in shards:
            source = SourceFile(_path_in(folder, shard), "safetensors", allowed_folders(folder))
            parts.append(open_safetensors(source))
        for shard, part in zip(shards, parts, strict=True):
            _require_agreement(folder, weight_map, shard, part)
        missing = weight_map.keys() - {name for part in parts for name in part}
        if missing:
            name = min(missing)
            raise FileError(
                f"[safetensors] {folder}: {INDEX} places tensor {quoted(name)} in "
                f"{quoted(weight_map[name])}, which does not have it"
            )
        return join(folder, "safetensors", parts)
    except BaseException:
        for part in parts:
            part.close()
        raise


def _require_agreement(
    folder: str, weight_map: dict[str, str], shard: str, part: Iterable[str]
) -> None:
    for name in part:
        place = weight_map.get(name)
        if place != shard:
            says = "does not name it" if place is None else f"places it in {quoted(place)}"
            raise FileError(
                f"[safetensors] {folder}: shard {quoted(shard)} has tensor {quoted(name)}, "
                f"{INDEX} {says}"
            )
