"""What earlier generations have left behind, for a prompt that begins as one of them did.

A token's keys and values depend on it and on the tokens before it alone, to the bit, so a prompt
that repeats the beginning of an earlier sequence (a conversation, a long system prompt) goes on
from that sequence's cache.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from .. import _core
from ..ops import Experts, PackedWeight
from .kv_cache import KVCache
from .parts import attributes, is_part
from .router import Router

_SAMPLES = 4096  # of an array whose numbers may have been changed in place
DEFAULT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class _Kept:
    ids: npt.NDArray[np.int32]
    cache: KVCache
    state: _State


class _State:
    """What a model's caches depend on: its parts, their settings and numbers.

    Objects are compared by identity and kept alive, so that no other takes their place; arrays
    by some of their numbers as well.
    """

    __slots__ = ("_objects", "_values")

    def __init__(self, model: object) -> None:
        self._objects: list[object] = []
        self._values: list[object] = [_core.isa(), getattr(model, "kv_format", None)]
        self._look(model, set(), top=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _State) and self._values == other._values

    __hash__ = None  # type: ignore[assignment]

    def _look(self, value: Any, seen: set[int], top: bool = False) -> None:
        if value is None or isinstance(value, (bool, int, float, str)):
            self._values.append(value)
            return
        self._values.append(id(value))
        if id(value) in seen:
            return
        seen.add(id(value))
        self._objects.append(value)
        if isinstance(value, PackedWeight):
            self._values += [id(value.core), value.version]
            self._objects.append(value.core)
        elif isinstance(value, np.ndarray):
            self._values.append(_checksum(value))
        elif isinstance(value, (list, tuple)):
            for item in value:
                self._look(item, seen)
        elif isinstance(value, dict):
            for key, item in value.items():
                self._look(key, seen)
                self._look(item, seen)
        elif top or type(value) is Experts or (is_part(value) and not isinstance(value, Experts)):
            for name in attributes(value):
                item = getattr(value, name, None)
                if not top or is_part(item) or isinstance(item, (np.ndarray, list, float, str)):
                    self._look(item, seen)


def _checksum(array: npt.NDArray[Any]) -> int:
    flat = array.reshape(-1) if array.flags.c_contiguous else array.ravel()
    return crc32(flat[:: max(1, flat.size // _SAMPLES)].tobytes())


class Prefixes:
    """The caches of the last sequences of one model, as many as `max_bytes` hold; 0 keeps none.

    Several threads may take and keep: a cache belongs to the one who took it.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_bytes = max_bytes
        self._kept: list[_Kept] = []  # the latest last
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes of all caches; what forks share counts in each."""
        return sum(kept.cache.nbytes for kept in self._kept)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()

    def take(self, model: object, prompt: npt.NDArray[np.int32]) -> KVCache | None:
        """A cache that holds the longest known beginning of `prompt`, its last token left out."""
        if self.max_bytes < 1 or not self._kept:
            return None
        state = _State(model)
        with self._lock:
            # After a change of the model nothing of before fits.
            self._kept = [kept for kept in self._kept if kept.state == state]
            found = [(_usable(kept, prompt), n) for n, kept in enumerate(self._kept)]
            most, at = max(found, default=(0, 0))
            if most < 1:
                return None
            kept = self._kept[at]
            if most == len(kept.ids):  # a continuation: nobody else needs it
                del self._kept[at]
                return kept.cache
            cache = kept.cache.fork()
        cache.truncate(most)
        return cache

    def keep(self, model: object, ids: npt.NDArray[np.int32], cache: KVCache) -> None:
        """Remember the cache of the sequence `ids`, which nobody else may write to from now on."""
        if cache.length != len(ids) or not 0 < cache.nbytes <= self.max_bytes:
            return
        kept = _Kept(ids.copy(), cache, _State(model))
        with self._lock:
            self._kept = [one for one in self._kept if not _begins_with(ids, one.ids)]
            self._kept.append(kept)
            while self.nbytes > self.max_bytes:
                del self._kept[0]


def _common(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    count = min(len(a), len(b))
    differ = np.flatnonzero(a[:count] != b[:count])
    return int(differ[0]) if len(differ) else count


def _begins_with(ids: npt.NDArray[np.int32], start: npt.NDArray[np.int32]) -> bool:
    return len(start) <= len(ids) and _common(ids, start) == len(start)


def _usable(kept: _Kept, prompt: npt.NDArray[np.int32]) -> int:
    """Tokens that `prompt` can take over; a recurrent state only as a whole."""
    common = min(_common(kept.ids, prompt), len(prompt) - 1)
    return 0 if kept.cache.state and common < len(kept.ids) else common


def reusable(layers: Iterable[Any]) -> bool:
    """Whether no token's bytes depend on how its sequence is cut into passes.

    They may where an expert's capacity counts a pass's tokens, where the rotation goes by the
    length that a sequence has in a pass, and where a function of the caller's own chooses.
    """
    for layer in layers:
        moe = layer.moe
        if moe is not None and (moe.capacity is not None or not isinstance(moe.router, Router)):
            return False
        if getattr(getattr(layer, "attention", None), "long", None) is not None:
            return False
    return True
