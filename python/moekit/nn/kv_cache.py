"""What the tokens of one sequence leave behind for those that follow."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .. import _core
from ..ops import QuantisedRows

Array = npt.NDArray[Any]
RowShape = tuple[int, ...]

_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
}
#: The names of formats, for the same dtypes.
_FORMATS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
Kept = Array | QuantisedRows
_ALIGNMENT_BYTES = 64  # a cache line: vector loads of a row never straddle two
_HUGE_PAGE_BYTES = 2 << 20
_FIRST_CAPACITY = 64


class State(NamedTuple):
    """What a recurrent layer knows of the ``length`` tokens that it has seen."""

    length: int
    arrays: tuple[Array, ...]


class KVCache:
    """Keys and values of one sequence, layer by layer; a batch is a list of caches.

    ``rows[layer]`` lists the shapes of what one token leaves in that layer: ``((Hk, D), (Hk, Dv))``
    for grouped-query attention, ``((L + R,),)`` for MLA's latent and rotary part, with one shape
    more for an indexer's keys, ``()`` for a layer that keeps no rows.

    ``dtype`` is ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"int8"`` (or ``"f32"`` and so
    on): what the rows are rounded to when they are appended. ``int8`` keeps a float32 scale of
    max|row| / 127 for each row of a head; its rows come as :class:`~moekit.ops.QuantisedRows`.
    Memory grows geometrically, so appending costs amortised constant time.

    ``state`` holds what a recurrent layer carries instead of rows, under any key: a :class:`State`.
    Replace its values, never write into them: forks share them, and a pass that is interrupted
    goes back to them.

    >>> cache = KVCache([((8, 128), (8, 128))] * 32, dtype="bfloat16")
    >>> keys, values = cache.append(0, k, v)  # k, v: [T, 8, 128]; keys, values: [length, 8, 128]
    """

    def __init__(
        self, rows: Sequence[Sequence[RowShape]], dtype: npt.DTypeLike | str = "float32"
    ) -> None:
        self.dtype = cache_dtype(dtype)
        self.state: dict[Any, State] = {}
        #: What does not grow: an encoder's keys and values, by layer. Forks share them.
        self.memory: dict[Any, tuple[Array, ...]] = {}
        #: Which sequence of the caller's list this is: settings of its own go by it.
        self.request = 0
        #: Whether the model's own routers, unobserved, have chosen for all its tokens.
        self.plain = True
        self._layers = [[_Rows(tuple(shape), self.dtype) for shape in layer] for layer in rows]

    def append(self, layer: int, *rows: Array, first: int | None = None) -> tuple[Any, ...]:
        """Keeps the rows of T more tokens and returns all of the layer's rows.

        One ``[T, *shape]`` array for each of the layer's shapes, or for some of them from number
        ``first`` on, where a layer has several parts that keep rows; returned are
        ``[length + T, *shape]`` views, valid until the next call that changes this layer.
        ValueError if a shape differs.
        """
        streams = self._streams(layer)
        if first is not None:
            streams = streams[first : first + len(rows)]
        if len(rows) != len(streams):
            raise ValueError(
                f"[KVCache.append] {len(rows)} arrays were given for layer {layer}; "
                f"it keeps {len(streams)}"
            )
        for given, stream in zip(rows, streams, strict=True):
            if given.shape[1:] != stream.shape or len(given) != len(rows[0]):
                raise ValueError(
                    f"[KVCache.append] shape {list(given.shape)} was given for layer {layer}; "
                    f"[{len(rows[0])}, {', '.join(map(str, stream.shape))}] is required"
                )
        return tuple([stream.append(given) for given, stream in zip(rows, streams, strict=True)])

    def room(self, layer: int) -> tuple[Any, ...]:
        """The layer's parts with room for one token more, which counts already: the core fills it.

        A part has ``length`` tokens in ``flat`` [room, heads, width], int8 ones with
        ``flat_scales`` [room, heads].
        """
        streams = self._streams(layer)
        for stream in streams:
            stream.extend(1)
        return tuple(streams)

    def recall(self, key: Any, count: int) -> tuple[Array | None, ...]:
        """The ``count`` arrays of a recurrent state, or as many None before the first token."""
        state = self.state.get(key)
        return (None,) * count if state is None else state.arrays

    def remember(self, key: Any, tokens: int, *arrays: Array) -> None:
        """Replaces a recurrent state by the one after ``tokens`` more tokens."""
        before = self.state.get(key)
        self.state[key] = State(tokens + (0 if before is None else before.length), arrays)

    def view(self, layer: int) -> tuple[Any, ...]:
        """All rows of a layer, as ``append`` returned them."""
        return tuple(stream.view() for stream in self._streams(layer))

    @property
    def length(self) -> int:
        """Tokens that every layer holds: what a forward pass may continue from.

        Layers differ only inside a forward pass and after one that was interrupted;
        ``truncate(length)`` heals the latter.
        """
        lengths = [stream.length for layer in self._layers for stream in layer]
        lengths += [state.length for state in self.state.values()]
        return min(lengths, default=0)

    def __len__(self) -> int:
        return self.length

    def __bool__(self) -> bool:  # an empty cache is a cache all the same
        return True

    def truncate(self, length: int) -> None:
        """Forgets every token from position ``length`` on.

        ValueError if it holds fewer, or if a recurrent state is held that cannot go back.
        """
        if not 0 <= length <= self.length:
            raise ValueError(
                f"[KVCache.truncate] length is {length}; 0 to {self.length} are possible"
            )
        if length == 0:
            self.state.clear()
        seen = max((state.length for state in self.state.values()), default=0)
        if seen > length:
            raise ValueError(
                f"[KVCache.truncate] length is {length}; recurrent layers hold the state after "
                f"{seen} tokens and can only start again from 0"
            )
        for layer in self._layers:
            for stream in layer:
                stream.length = min(stream.length, length)

    def reserve(self, length: int) -> None:
        """Makes room for ``length`` tokens at once, where the final length is known."""
        for layer in self._layers:
            for stream in layer:
                stream.reserve(length)

    def fork(self) -> KVCache:
        """A cache that goes its own way from here, e.g. to reuse a common prefix.

        Nothing is copied now: a layer is when one of the two first writes where the other reads.
        """
        twin = KVCache([[stream.shape for stream in layer] for layer in self._layers], self.dtype)
        twin.state, twin.request = dict(self.state), self.request
        twin.plain = self.plain
        twin.memory = dict(self.memory)
        twin._layers = [[stream.fork() for stream in layer] for layer in self._layers]
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes held, room for growth included; what forks share counts in each."""
        rows = sum(stream.nbytes for layer in self._layers for stream in layer)
        rows += sum(a.nbytes for arrays in self.memory.values() for a in arrays)
        return rows + sum(a.nbytes for state in self.state.values() for a in state.arrays)

    def _streams(self, layer: int) -> list[_Rows]:
        if not 0 <= layer < len(self._layers):
            raise ValueError(
                f"[KVCache] layer is {layer}; 0 to {len(self._layers) - 1} are possible"
            )
        return self._layers[layer]


def cache_dtype(name: npt.DTypeLike | str) -> np.dtype[Any]:
    """The dtype of cached rows by its name or that of a format; TypeError for another."""
    text = name if isinstance(name, str) else np.dtype(name).name
    text = _FORMATS.get(text, text)
    if text not in _DTYPES:
        raise TypeError(f"[KVCache] dtype is {text}; {', '.join(_DTYPES)} are possible")
    return _DTYPES[text]


class _Rows:
    """A growing array of equally shaped rows.

    Rows of shape (Hk, D) lie head by head, [Hk, capacity, D]: a head's rows then stream from
    memory in one piece, which is what attention reads. int8 rows have scales [Hk, capacity].
    """

    # A token looks at all of them, in memory that its weights have driven out of the caches.
    __slots__ = (
        "_capacity",
        "_places",
        "_scale_places",
        "_shared",
        "_tokens_first",
        "buffer",
        "flat",
        "flat_scales",
        "length",
        "scales",
        "shape",
    )

    def __init__(self, shape: RowShape, dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.length = 0
        *heads, width = range(len(shape) + 1)
        self._tokens_first = (heads.pop(), *heads, width)
        self._allocate(0, dtype)
        self._shared = 0  # rows that a fork reads too

    def _allocate(self, capacity: int, dtype: np.dtype[Any]) -> None:
        *heads, width = self.shape
        row_bytes = prod(self.shape) * dtype.itemsize
        if capacity * row_bytes >= _HUGE_PAGE_BYTES:  # as many rows as its huge pages hold
            capacity = _in_huge_pages(capacity * row_bytes) // row_bytes
        buffer, scales = _aligned_empty((*heads, capacity, width), dtype), None
        if dtype == np.int8:
            scales = _aligned_empty((*heads, capacity), np.dtype(np.float32))
        self._hold(buffer, scales)

    def _hold(self, buffer: Array, scales: Array | None) -> None:
        """Keeps rows in this memory. Its views are made once: every token needs them."""
        self.buffer, self.scales = buffer, scales
        self._capacity, width = buffer.shape[-2:]
        flat = (prod(self.shape[:-1]), self._capacity, width)
        self._places = buffer.transpose(self._tokens_first)
        self.flat = buffer.reshape(flat).transpose(1, 0, 2)
        self._scale_places = self.flat_scales = None
        if scales is not None:
            self._scale_places = scales.transpose(self._tokens_first[:-1])
            self.flat_scales = scales.reshape(flat[:2]).transpose()

    @property
    def nbytes(self) -> int:
        return self.buffer.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def append(self, rows: Array) -> Kept:
        start = self.extend(len(rows))
        view = self.view()
        self._keep(rows, start)
        return view

    def extend(self, count: int) -> int:
        """Makes `count` tokens more count, whose rows are to be written; where they begin."""
        start, stop = self.length, self.length + count
        if stop > self._capacity or start < self._shared:
            grown = max(stop, self._capacity, _FIRST_CAPACITY)
            if stop > self._capacity:
                grown = max(grown, self._capacity * 3 // 2)
            self._move(grown)
        self.length = stop
        return start

    def _keep(self, rows: Array, start: int) -> None:
        seen = slice(start, self.length)
        if rows.dtype != np.float32 and self.scales is None:
            self._places[seen] = rows
            return
        if rows.dtype != np.float32 or rows.strides[-1] != 4 or rows.ndim != 3:
            rows = np.ascontiguousarray(rows, np.float32).reshape(len(rows), *self.flat.shape[1:])
        scales = None if self.flat_scales is None else self.flat_scales[seen]
        _core.keep_rows(rows, self.flat[seen], scales)

    def view(self) -> Kept:
        values = self._places[: self.length]
        if self._scale_places is None:
            return values
        return QuantisedRows(values, self._scale_places[: self.length])

    def reserve(self, capacity: int) -> None:
        if capacity > self._capacity:
            self._move(capacity)

    def fork(self) -> _Rows:
        twin = _Rows(self.shape, self.buffer.dtype)
        twin._hold(self.buffer, self.scales)
        twin.length = self.length
        # The original goes on in place behind the shared rows; the twin always moves out first,
        # so its own rows are all shared, to the last place of the capacity.
        twin._shared = self._capacity + 1
        self._shared = max(self._shared, self.length)
        return twin

    def _move(self, capacity: int) -> None:
        old, scales, seen = self.buffer, self.scales, slice(self.length)
        self._allocate(capacity, old.dtype)
        self._shared = 0
        self.buffer[..., seen, :] = old[..., seen, :]
        if self.scales is not None and scales is not None:
            self.scales[..., seen] = scales[..., seen]


def _aligned_empty(shape: RowShape, dtype: np.dtype[Any]) -> Array:
    nbytes = int(np.prod(shape)) * dtype.itemsize
    if nbytes >= _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        raw, start = _huge_pages(nbytes)
    else:
        raw = np.empty(nbytes + _ALIGNMENT_BYTES, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT_BYTES
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def _in_huge_pages(nbytes: int) -> int:
    return -(-nbytes // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES


def _huge_pages(nbytes: int) -> tuple[Array, int]:
    """Memory from `start` on in huge pages: a step of decoding reads a cache from end to end, and
    each small page costs it a walk.
    """
    size = _in_huge_pages(nbytes)
    pages = mmap.mmap(-1, size + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    raw = np.frombuffer(pages, np.uint8)
    start = -raw.ctypes.data % _HUGE_PAGE_BYTES
    with contextlib.suppress(OSError):  # a kernel without them: small pages
        pages.madvise(mmap.MADV_HUGEPAGE, start, size)
    return raw, start
