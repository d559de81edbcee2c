"""Models in moekit's own layout (`checkpoint/packed.py`): a frame first, then what it holds."""

import copy
import dataclasses
import os
from collections.abc import Container
from typing import Any

import numpy as np
import numpy.typing as npt

from . import checkpoint, models, ops
from .checkpoint.packed import TENSOR
from .config import Config
from .models.formats import Formats
from .models.outline import OutlineReader
from .nn import Model
from .nn.parts import rebuilt
from .ops import Experts, PackedWeight

# Panels are read and put in their places so much at a time.
_READ_BYTES = 1 << 20
_FLOATS = ("float32", "bfloat16", "float16")


def load_packed(folder: str) -> tuple[Model, Config]:
    """A model in moekit's own layout: its family gives the parts, the file what they hold."""
    config = Config(checkpoint.read_config(folder), os.path.join(folder, "config.json"))
    with checkpoint.open_packed(folder) as file:
        reader = OutlineReader(checkpoint.Outline(file), Formats.of("int8"))
        frame = models.build(config, reader)
        stored = dict(file.entries)

        places: dict[int, Any] = {}
        tensors: dict[str, Any] = {}

        def take(path: str, value: Any) -> Any:
            if not isinstance(value, (PackedWeight, np.ndarray)):
                return value
            if stored.pop(path, None) is None:
                raise file.error(path, "is missing")
            new = unpacked(file, path)
            _check_kind(file, path, value, new)
            places[id(value)] = value, new
            if isinstance(value, np.ndarray) and isinstance(new, np.ndarray):
                base = value.base
                # A part may keep a view of what was read.
                if isinstance(base, np.ndarray) and base.size == new.size:
                    places[id(base)] = base, new.reshape(base.shape)
            return new

        if file.edited:
            frame = _with_biases(frame, stored)
        model = rebuilt(frame, take)
        for path in [path for path in stored if path.startswith(TENSOR)]:
            name = path.removeprefix(TENSOR)
            tensors[name] = unpacked(file, path)
            del stored[path]
        if stored:
            raise file.error(min(stored), "has no place in the model")
        model.outline = file.outline
        model.grouping = file.grouping
        model.passed_over = reader.passed_over
        model.quantization = file.quantization
    placed: list[Any] = []
    # A model with other experts than its checkpoint (`mk.edit`) has no place for some tensors.
    edited = file.edited or any(
        isinstance(new, PackedWeight) and new.shape != old.shape for old, new in places.values()
    )
    for place in [] if edited else reader.placed:
        found = places.get(id(place.weight), (None, tensors.get(place.piece.name)))[1]
        if found is None:
            raise file.error(place.piece.name, "is missing")
        placed.append(dataclasses.replace(place, weight=found))
    model.placed = placed
    return model, config


def _is_float(array: npt.NDArray[Any]) -> bool:
    return array.dtype.name in _FLOATS


def _check_kind(
    file: checkpoint.PackedReader,
    path: str,
    value: PackedWeight | npt.NDArray[Any],
    new: PackedWeight | npt.NDArray[Any],
) -> None:
    """FileError unless the file has, in place of the frame's `value`, something of its kind."""
    if isinstance(value, PackedWeight) or isinstance(new, PackedWeight):
        if not (isinstance(value, PackedWeight) and isinstance(new, PackedWeight)):
            wanted = "a packed weight" if isinstance(value, PackedWeight) else "a plain tensor"
            raise file.error(path, f"is of another kind; {wanted} is required")
    elif _is_float(value) and not _is_float(new):
        raise file.error(path, f"is {new.dtype}; {', '.join(_FLOATS)} is required")
    elif value.dtype.kind in "iu" and new.dtype.kind not in "iu":
        raise file.error(path, f"is {new.dtype}; integers are required")
    # Experts that were added, or left out, change a model's shapes.
    if not file.edited and new.shape != value.shape:
        raise file.error(path, f"is {list(new.shape)}; {list(value.shape)} is required")


def _with_biases(frame: Model, stored: Container[str]) -> Model:
    """The frame with the biases that `mk.edit.constant` gave to experts whose family has none."""

    def add(path: str, value: Any) -> Any:
        if not isinstance(value, Experts):
            return value
        sizes = {"gate_bias": value.inter, "up_bias": value.inter, "down_bias": value.hidden}
        missing = {
            name: np.zeros((value.count, size), np.float32)
            for name, size in sizes.items()
            if getattr(value, name) is None and f"{path}.{name}" in stored
        }
        if not missing:
            return value
        result = copy.copy(value)
        for name, bias in missing.items():
            setattr(result, name, bias)
        result.rebind()
        return result

    return rebuilt(frame, add)


def unpacked(file: checkpoint.PackedReader, path: str) -> PackedWeight | npt.NDArray[Any]:
    """What a packed directory holds under `path`."""
    entry = file.entries[path]
    if not entry.format:
        return file.read(path)
    stored = file.nbytes(path)
    try:
        rows, cols = entry.shape[-2:]
        count = entry.shape[0] if len(entry.shape) == 3 else 1
        names = [entry.format] if isinstance(entry.format, str) else list(entry.format)
        sizes = [ops.packed_bytes(name, rows, cols) for name in names]
        total = sum(sizes) if len(sizes) > 1 else sizes[0] * count
        if total != stored:
            raise ValueError(f"{stored} bytes; {total} are required")
        weight = PackedWeight.empty(names if len(names) > 1 else names[0], entry.shape)
    except ValueError as problem:
        raise file.error(path, f"{list(entry.shape)}: {problem}") from problem
    start = 0
    for expert in range(count):
        size = sizes[expert if len(sizes) > 1 else 0]
        for begin in range(0, size, _READ_BYTES):
            end = min(begin + _READ_BYTES, size)
            weight.fill_bytes(expert, file.read_bytes(path, start + begin, start + end), begin)
        start += size
    return weight
