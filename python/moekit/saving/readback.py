"""Whether a GGUF file will be read as the model that it is written from; found out beforehand.

The model is built once more from the keys and the shapes that the file is to have, without its
matrices. What a key cannot say shows as a part that differs, whichever family and setting it is.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import models
from ..checkpoint import Checkpoint, open_weights, read_gguf_config
from ..checkpoint.tensors import TensorInfo
from ..config import Config
from ..errors import FileError
from ..models.formats import Formats
from ..models.outline import OutlineReader
from ..nn import RMSNorm
from ..nn.parts import attributes, is_part
from ..ops import PackedWeight
from .placing import Array

if TYPE_CHECKING:
    from ..nn import Model

# Numbers of a file have 24 bits, and factors of frequencies are quotients of such.
_CLOSE = 1e-5
# Weights of norms with their one: rounded to 2^-24 of it.
_ALMOST = 1e-7
_FRAME = ("layers", "norm", "head", "embedding_scale", "logit_scale", "logit_softcap")
# What a caller sets, what parts make when they are used, and in which order a delta net's
# projections lie in their file. A router's `_core_rule` says again what its `_rule` says; an
# embedding of the layers is compared no more than the model's.
_FREE = ("compute", "_core_rule", "_router", "_banks", "_everyone", "inputs", "_order", "embedding")


class _Planned(Checkpoint):
    """The file before it is written; `values` gives the tensors that parts keep as they are."""

    def __init__(
        self,
        path: str,
        metadata: Mapping[str, Any],
        specs: Mapping[str, tuple[str, Sequence[int]]],
        values: Mapping[str, Callable[[], Array]],
    ) -> None:
        infos = {
            name: TensorInfo(name, kind, tuple(shape), 0, 0, path)
            for name, (kind, shape) in specs.items()
        }
        read = {key: _as_read(value) for key, value in metadata.items()}
        super().__init__(path, "gguf", [], infos, read)
        self._values = values

    def error(self, info: TensorInfo | None, problem: str) -> FileError:
        return FileError(problem if info is None else f"tensor {info.name} {problem}")

    def __getitem__(self, name: str) -> Array:
        if name in self._values:
            return self._values[name]()
        return np.broadcast_to(np.zeros((), np.float32), self.info(name).shape)


def _as_read(value: Any) -> Any:
    if isinstance(value, float):
        return float(np.float32(value))
    return value.item() if isinstance(value, np.generic) else value


def require_sayable(
    model: "Model",
    path: str,
    metadata: Mapping[str, Any],
    specs: Mapping[str, tuple[str, Sequence[int]]],
    values: Mapping[str, Callable[[], Array]],
) -> None:
    """ValueError naming a part of `model` that the file with these keys would not give again."""
    planned = _Planned(path, metadata, specs, values)
    name = metadata["general.architecture"]
    try:
        config = Config(read_gguf_config(planned), "the file")
        reader = OutlineReader(open_weights(planned, config), Formats.of("int8"))
        found = models.build(config, reader)
    except FileError as problem:
        raise ValueError(f"[save] GGUF's {name} cannot say this model: {problem}") from problem
    for part in _FRAME:
        for place, mine, theirs in _differences(part, getattr(model, part), getattr(found, part)):
            raise ValueError(
                f"[save] {place} is {_short(mine)}; GGUF's {name} means {_short(theirs)}, which is "
                "required"
            )


def _short(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)} {value.reshape(-1)[:4].tolist()!a}"
    return f"{value!r:.60}"


def _whole(norm: RMSNorm) -> Array | None:
    return None if norm.weight is None else norm.weight + np.float32(norm.offset)


def _differences(path: str, mine: Any, theirs: Any) -> Iterator[tuple[str, Any, Any]]:
    """(path, what the model has, what the file gives) where the two differ."""
    if isinstance(mine, RMSNorm) and isinstance(theirs, RMSNorm):
        # The one that is added may be in the weights.
        yield from _differences(f"{path}.eps", mine.eps, theirs.eps)
        yield from _differences(f"{path}.weight", *(_whole(norm) for norm in (mine, theirs)))
    elif isinstance(mine, PackedWeight) and isinstance(theirs, PackedWeight):
        if mine.shape != theirs.shape:
            yield path, mine, theirs
    elif isinstance(mine, np.ndarray) and isinstance(theirs, np.ndarray):
        if mine.shape != theirs.shape or not np.allclose(
            mine.astype(np.float64), theirs.astype(np.float64), _CLOSE, _ALMOST, equal_nan=True
        ):
            yield path, mine, theirs
    elif is_part(mine) or dataclasses.is_dataclass(mine):
        if type(mine) is not type(theirs):
            yield path, mine, theirs
            return
        sizes = [getattr(part, "sizes", None) for part in (mine, theirs)]
        if getattr(sizes[0], "tiled", None) != getattr(sizes[1], "tiled", None):
            return  # a delta net's heads in another order
        for name in attributes(mine):
            if name not in _FREE:
                own, other = (getattr(part, name, None) for part in (mine, theirs))
                yield from _differences(f"{path}.{name}", own, other)
    elif isinstance(mine, (list, tuple)) and isinstance(theirs, (list, tuple)):
        if len(mine) != len(theirs):
            yield path, mine, theirs
        for n, (own, other) in enumerate(zip(mine, theirs, strict=False)):
            yield from _differences(f"{path}.{n}", own, other)
    elif isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        for key in [*mine, *(key for key in theirs if key not in mine)]:
            yield from _differences(f"{path}.{key}", mine.get(key), theirs.get(key))
    elif isinstance(mine, float) and isinstance(theirs, (int, float)):
        if not np.isclose(mine, theirs, _CLOSE, 1e-20, equal_nan=True):
            yield path, mine, theirs
    elif not callable(mine) and mine != theirs:
        yield path, mine, theirs
