"""The file of a record: a `.npz` of plain arrays that NumPy alone reads."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .errors import FileError

VERSION = 1
# Arrays of the file; all but the first may be missing.
ARRAYS = (
    *("experts", "weights", "layers", "num_experts", "sequences", "positions", "ids", "logits"),
    *("margins", "on_input"),
)
_TEXTS = ("texts", "policy")
T = TypeVar("T")


def write(
    path: str | os.PathLike[str],
    arrays: Mapping[str, npt.NDArray[Any] | None],
    texts: Mapping[str, Any],
) -> None:
    """Write the arrays that are there, and texts as JSON in bytes (NumPy's own text arrays cut
    trailing NULs off). FileError where the path cannot be written."""
    content = {name: array for name, array in arrays.items() if array is not None}
    for name, text in texts.items():
        if text is not None:
            content[name] = np.frombuffer(json.dumps(text).encode(), np.uint8)
    try:
        with open(path, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, version=np.array(VERSION), **content)
    except OSError as error:
        where = os.fsdecode(path)
        raise FileError(f"[record] {where} cannot be written: {error.strerror or error}") from error


def read(path: str | os.PathLike[str], make: Callable[..., T]) -> T:
    """make(**arrays, texts=, policy=) of a file; FileError if it is something else."""
    name = os.fsdecode(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            names = ("version", *ARRAYS, *_TEXTS)
            arrays = {key: file[key] for key in names if key in file.files}
        version = int(arrays.pop("version", VERSION))
        if version > VERSION:
            raise ValueError(f"version {version}; up to {VERSION} can be read")
        found = {key: json.loads(arrays.pop(key).tobytes()) for key in _TEXTS if key in arrays}
        words = found.get("texts")
        return make(
            arrays.pop("experts"),
            texts=None if words is None else [str(word) for word in words],
            policy=str(found.get("policy", "")),
            **arrays,
        )
    except OSError as error:
        raise FileError(f"[record] {name}: {error.strerror or error}") from error
    except KeyError as error:
        raise FileError(f"[record] {name}: has no array {error}") from None
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds
        raise FileError(f"[record] {name}: is no routing record ({error})") from error
