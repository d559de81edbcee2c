"""moekit's own layout: weights as the kernels read them, in safetensors files.

    config.json, tokenizer.json, ...      as in the checkpoint that was packed
    packed-00000.safetensors, ...         the model's arrays: layer n in file n, the rest after it
    moekit.json                           what the files mean:
        layout   "moekit packed", version 3
        weights  path in the model (for tensors that parts keep only in another form, "tensor:" and
                 their name) -> {file, format, shape}; arrays have no format and their own
                 dtype, packed weights are U8: the panels of the experts one after another (as
                 csrc/moe/quant describes them for each format, little endian, the same for every
                 instruction set), format a name or a list of one for each expert
        outline  tensor of the packed checkpoint -> [dtype, shape]: what the family's module asks
                 for when it puts the model together; grouping "hf" or "gguf" says whose names
        edited   true if the weights are not those of the outline's tensors (`mk.edit`): such a
                 model is not saved in their layout again
        quantization   what `mk.quantize` has noted

A directory is written beside its place under `.NAME.partial`, a file at a time, and moved there
when it is whole. What an interruption has left is taken up again by a writer with the same key.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FileError
from .directory import has_file, read_json
from .pieces import Piece
from .safetensors import open_safetensors
from .source import Array, SourceFile, allowed_folders, quoted
from .target import replacing, sync_folder, write_all
from .tensors import Checkpoint, TensorInfo
from .weights import WeightInfo, Weights
from .write import dtype_name, stream_safetensors

DOCUMENT = "moekit.json"
LAYOUT = "moekit packed"
VERSION = 3  # 1 had other panels for fp8 and for IQ1, IQ2 and IQ3, 2 for Q1_0
MAX_DOCUMENT_BYTES = 256 << 20
_PROGRESS = "progress.json"
# A tensor of each file that is no weight: what was noted while its part was made.
NOTES = "notes"
# Before the name of a tensor that no part keeps as it was read.
TENSOR = "tensor:"
# Of the packed checkpoint, these are kept: what a tokenizer and a generation need.
_COPIED = (".json", ".txt", ".jinja", ".model", ".tiktoken", ".md")


@dataclass(frozen=True, slots=True)
class PackedEntry:
    """An array (format "") or a packed weight: `format` is a name or one for each expert."""

    file: str
    format: str | tuple[str, ...]
    shape: tuple[int, ...]


# What is written: path, format, shape, and the array or the panels of each expert.
Item = tuple[str, str | list[str], tuple[int, ...], Sequence[Array]]


def is_packed(directory: str | os.PathLike[str]) -> bool:
    """True for a directory in moekit's own layout."""
    folder = os.fsdecode(directory)
    return os.path.isdir(folder) and has_file(folder, DOCUMENT)


class PackedWriter:
    """Writes a directory file by file; a context manager.

    Leaving it by Ctrl-C keeps what is finished for a writer of the same `key`; leaving it by any
    other exception removes it. `directory` must not exist, or be empty, unless `overwrite`.
    """

    def __init__(
        self, directory: str | os.PathLike[str], key: str, *, overwrite: bool = False
    ) -> None:
        self.directory = os.path.abspath(os.fsdecode(directory))
        if os.path.lexists(self.directory) and not _replaceable(self.directory, overwrite):
            raise ValueError(
                f"[quantize] {self.directory} is there already; a new or empty directory, or "
                "overwrite, is required"
            )
        folder, name = os.path.split(self.directory)
        if not os.path.isdir(folder):
            raise FileError(f"[quantize] {folder}: is no directory; one to write into is required")
        self._stage = os.path.join(folder, f".{name}.partial")
        self._progress: dict[str, Any] = {"key": key, "files": {}}
        self._finished = False

    def __enter__(self) -> "PackedWriter":
        with contextlib.suppress(FileError, KeyError, TypeError):
            found = read_json(self._stage, _PROGRESS, MAX_DOCUMENT_BYTES)
            if found["key"] == self._progress["key"] and isinstance(found["files"], dict):
                self._progress = found
                return self
        shutil.rmtree(self._stage, ignore_errors=True)
        os.mkdir(self._stage)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._finished and kind is not None and not issubclass(kind, KeyboardInterrupt):
            shutil.rmtree(self._stage, ignore_errors=True)

    def finished(self, part: int) -> "dict[str, PackedEntry] | None":
        """The entries of a part that an earlier run has written, None if it has not."""
        name = _file_name(part)
        entries = self._progress["files"].get(name)
        if entries is None:
            return None
        return _entries({path: {**entry, "file": name} for path, entry in entries})

    def open(self, part: int) -> "PackedReader":
        """A reader of a finished part."""
        entries = self.finished(part)
        assert entries is not None
        return PackedReader(self._stage, entries)

    def write(self, part: int, items: Iterable[Item]) -> None:
        """Write a part and note that it is finished."""
        name = _file_name(part)
        specs: dict[str, tuple[str, Sequence[int]]] = {}
        arrays: dict[str, Array] = {}
        entries: list[tuple[str, dict[str, Any]]] = []
        for path, format, shape, data in items:
            array = data[0] if not format else np.concatenate(data)
            specs[path] = (dtype_name(array), array.shape)
            arrays[path] = array
            entries.append((path, {"format": format, "shape": list(shape)}))
        stream_safetensors(os.path.join(self._stage, name), specs, arrays.items())
        self._progress["files"][name] = entries
        _write_json(os.path.join(self._stage, _PROGRESS), self._progress)

    def finish(
        self,
        outline: Mapping[str, tuple[str, Sequence[int]]],
        grouping: str,
        config: Mapping[str, object],
        source: str | None,
        quantization: object,
        edited: bool = False,
    ) -> None:
        """Write the document and the small files of `source`, then move the directory.

        `edited`: the weights are not those of the tensors in `outline` any more.
        """
        weights = {
            path: {"file": name, **entry}
            for name, entries in self._progress["files"].items()
            for path, entry in entries
            if path != NOTES
        }
        document = {
            "layout": LAYOUT,
            "version": VERSION,
            "grouping": grouping,
            "edited": edited,
            "quantization": quantization,
            "weights": weights,
            "outline": {name: [dtype, list(shape)] for name, (dtype, shape) in outline.items()},
        }
        _write_json(os.path.join(self._stage, DOCUMENT), document)
        for name in _small_files(source):
            shutil.copyfile(os.path.join(str(source), name), os.path.join(self._stage, name))
        _write_json(os.path.join(self._stage, "config.json"), config)
        os.unlink(os.path.join(self._stage, _PROGRESS))
        sync_folder(self._stage)
        if os.path.lexists(self.directory):
            old = self._stage + ".old"
            os.rename(self.directory, old)
            os.rename(self._stage, self.directory)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(self._stage, self.directory)
        self._finished = True
        sync_folder(os.path.dirname(self.directory))


def _replaceable(directory: str, overwrite: bool) -> bool:
    if os.path.islink(directory) or not os.path.isdir(directory):
        return False
    # Only what is ours is ever replaced.
    return not os.listdir(directory) or (overwrite and is_packed(directory))


def _file_name(part: int) -> str:
    return f"packed-{part:05}.safetensors"


def _small_files(source: str | None) -> Iterator[str]:
    if source is None or not os.path.isdir(source):
        return
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        index = entry.name.endswith(".index.json") or entry.name in (DOCUMENT, "config.json")
        if entry.is_file() and entry.name.endswith(_COPIED) and not index:
            yield entry.name


def _write_json(path: str, value: object) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    with replacing(path) as fd:
        write_all(fd, text.encode(), 0)


def _entries(found: Mapping[str, Any]) -> dict[str, PackedEntry]:
    entries = {}
    for path, value in found.items():
        file, format, shape = value["file"], value["format"], value["shape"]
        names = [format] if isinstance(format, str) else format
        if not (
            isinstance(file, str)
            and isinstance(names, list)
            and all(isinstance(name, str) for name in names)
            and isinstance(shape, list)
            and all(type(size) is int and 0 <= size < 1 << 40 for size in shape)
        ):
            raise TypeError(path)
        kept = format if isinstance(format, str) else tuple(format)
        entries[path] = PackedEntry(file, kept, tuple(shape))
    return entries


class PackedReader:
    """What a directory holds: `entries` by path, `outline`, `quantization`; a context manager."""

    def __init__(self, directory: str, entries: dict[str, PackedEntry]) -> None:
        self.path = directory
        self.entries = entries
        self.outline: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.grouping = "hf"
        self.edited = False
        self.quantization: Any = None
        self._files: dict[str, Checkpoint] = {}

    def __enter__(self) -> "PackedReader":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def error(self, path: str, problem: str) -> FileError:
        """What to raise about the weight at `path`."""
        return FileError(f"[packed] {self.path}: {quoted(path)} {problem}")

    def read(self, path: str) -> Array:
        """The array, or the panels of all experts as uint8."""
        return self._file(path)[path]

    def read_bytes(self, path: str, begin: int, end: int) -> Array:
        """Bytes `begin:end` of the panels of all experts, uint8."""
        return self._file(path).read_rows(path, begin, end)

    def dtype(self, path: str) -> str:
        """The dtype in the file, from its header."""
        return self._file(path).info(path).dtype

    def nbytes(self, path: str) -> int:
        """Bytes in the file, from its header."""
        return self._file(path).info(path).nbytes

    def _file(self, path: str) -> Checkpoint:
        """The open file that has `path`, which is of the kind and shape that the document says."""
        entry = self.entries[path]
        if entry.file not in self._files:
            if not _is_shard(entry.file):
                raise self.error(path, f"lies in {quoted(entry.file)}; packed-N.safetensors")
            source = SourceFile(
                os.path.join(self.path, entry.file), "safetensors", allowed_folders(self.path)
            )
            self._files[entry.file] = open_safetensors(source)
        file = self._files[entry.file]
        info = file.info(path)
        if entry.format and (info.dtype != "U8" or len(info.shape) != 1):
            raise self.error(path, f"is {info.dtype} {list(info.shape)}; U8 [bytes] is required")
        if not entry.format and info.shape != entry.shape:
            raise self.error(path, f"is {list(info.shape)}; {list(entry.shape)} is required")
        return file


def _is_shard(name: str) -> bool:
    return (
        name.startswith("packed-")
        and name.endswith(".safetensors")
        and name[len("packed-") : -len(".safetensors")].isdecimal()
    )


def open_packed(directory: str | os.PathLike[str]) -> PackedReader:
    """The weights of a directory in moekit's own layout; FileError if it is broken."""
    folder = os.fsdecode(directory)
    document = read_json(folder, DOCUMENT, MAX_DOCUMENT_BYTES)
    path = os.path.join(folder, DOCUMENT)
    if document.get("layout") != LAYOUT or document.get("version") != VERSION:
        raise FileError(
            f"[packed] {path}: layout {quoted(str(document.get('layout')))}, version "
            f"{document.get('version')}; {quoted(LAYOUT)}, {VERSION} is required"
        )
    try:
        weights: Any = document["weights"]
        outline: Any = document["outline"]
        reader = PackedReader(folder, _entries(weights))
        for name, (dtype, shape) in outline.items():
            sizes = tuple(shape)
            if not isinstance(dtype, str) or any(type(n) is not int or n < 0 for n in sizes):
                raise TypeError(name)
            reader.outline[name] = (dtype, sizes)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise FileError(f"[packed] {path}: is broken at {quoted(str(problem))}") from problem
    reader.grouping = "gguf" if document.get("grouping") == "gguf" else "hf"
    reader.edited = document.get("edited") is True
    reader.quantization = document.get("quantization")
    return reader


class Outline(Weights):
    """The packed checkpoint as its family sees it: names and shapes, zeros for values.

    The zeros cost no memory; `mk.load` puts the weights in their places afterwards. Tensors that
    parts keep only in another form have their values.
    """

    def __init__(self, reader: PackedReader) -> None:
        self._reader = reader
        tensors = {
            name: TensorInfo(name, dtype, shape, 0, 0, "")
            for name, (dtype, shape) in reader.outline.items()
        }
        infos = {
            name: WeightInfo(name, "plain", tensor.shape, {"weight": name})
            for name, tensor in tensors.items()
        }
        super().__init__(Checkpoint(reader.path, "packed", [], tensors, {}), infos)

    def formats(self, piece: Piece) -> tuple[str, ...]:
        """One that is always there; it is never filled."""
        return ("int8",)

    def blocks(self, piece: Piece, format: str) -> None:
        """Nothing is stored in blocks."""
        return

    def take(self, piece: Piece) -> Array:
        """Zeros in the shape of the piece."""
        matrix = self[piece.name]
        return piece.of(matrix if piece.expert is None else matrix[piece.expert])

    def __getitem__(self, name: str) -> Array:
        if TENSOR + name in self._reader.entries:
            return self._reader.read(TENSOR + name)
        shape = self.info(name).shape
        # Vectors are kept by parts as they are, and told apart by what they are.
        if len(shape) < 2:
            return np.zeros(shape, np.float32)
        return np.broadcast_to(np.zeros((), np.float32), shape)
