"""Metadata keys of a GGUF file, read with checks."""

import math
from typing import Any

import numpy as np

from .source import quoted
from .tensors import Checkpoint

#: More layers than any model has are a fault of the file.
MAX_LAYERS = 4096


class Keys:
    """Metadata of one architecture by their names without it."""

    def __init__(self, checkpoint: Checkpoint, architecture: str) -> None:
        self.checkpoint = checkpoint
        self.start = architecture + "."

    def __contains__(self, key: str) -> bool:
        return self.start + key in self.checkpoint.metadata

    def get(self, key: str) -> Any:
        """A number, bool or text; of an array with one value for each layer that value."""
        value = self.checkpoint.metadata.get(self.start + key)
        if isinstance(value, np.ndarray):
            kinds = np.unique(value)
            if len(kinds) != 1:
                text = f"metadata key {quoted(self.start + key)} differs by layer; one is read"
                raise self.checkpoint.error(None, text)
            value = kinds[0].item()
        if isinstance(value, float):
            if not math.isfinite(value):
                text = f"metadata key {quoted(self.start + key)} is {value}; a number is required"
                raise self.checkpoint.error(None, text)
            return shortest(value)
        return value

    def by_layer(self, key: str, layers: int, *, longer: bool = False) -> list[int]:
        """A count for each layer: an array, or one number for all of them.

        `longer`: the array may go on, for layers that predict further tokens.
        """
        value = self.checkpoint.metadata.get(self.start + key)
        if type(value) is int and 0 <= layers <= MAX_LAYERS:
            value = np.full(layers, value)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iub":
            value = np.full(1, -1)
        if longer and value.ndim == 1 and 0 <= layers < len(value):
            value = value[:layers]
        if value.shape == (layers,) and value.min(initial=0) >= 0:
            return [int(count) for count in value]
        text = f"metadata key {quoted(self.start + key)} is no count, nor one for each layer"
        raise self.checkpoint.error(None, text)

    def field(self, key: str, kind: type[int | float | str], default: Any = None) -> Any:
        """A value that has to be of this type; FileError where it is missing and has no default."""
        value = self.checkpoint.field(self.start + key, kind, default)
        return shortest(value) if isinstance(value, float) else value


def shortest(value: float) -> float:
    """The double that float32 `value` was meant to be: 1e-06 and not 9.99999997e-07."""
    single = np.float32(value)
    return float(str(single)) if float(single) == value else value


def share_of(part: int, whole: int) -> float:
    """The number that `whole` is multiplied with, and cut to an integer, to give `part`."""
    share = part / whole
    return share if int(whole * share) == part else math.nextafter(share, 2.0)
