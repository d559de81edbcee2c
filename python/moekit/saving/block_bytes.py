"""A packed matrix as the bytes that a GGUF file has for it: `fill_blocks` undone.

Packing a block copies its bits to other places, some to several, and may flip them. Where each one
goes is found by packing blocks that differ in a single bit, so every type whose packing is such a
permutation can be written, whatever its layout (`grid_blocks` has the others); the result is
packed again and compared before it is used.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..checkpoint.ggml_types import QUANTISED
from ..ops import PackedWeight, format_names
from .grid_blocks import GRID_TYPES, grid_blocks

Bytes = npt.NDArray[np.uint8]
_PANEL = 16  # rows side by side in a panel
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class _Map:
    """Byte f of row r in a file: for each term, `panel[source] >> down << up & mask`, then `flip`.

    `source`, `down`, `up`, `mask` are [terms, 16, bytes of a block]; `stride` is how far apart
    neighbouring blocks lie in a panel.
    """

    source: npt.NDArray[np.int64]
    down: Bytes
    up: Bytes
    mask: Bytes
    flip: Bytes
    stride: int


def file_blocks(weight: PackedWeight, slot: int) -> Bytes | None:
    """uint8 [N, bytes of a row] of one matrix; None where its format or size has no such form."""
    formats = weight.format
    format = formats if isinstance(formats, str) else formats[slot]
    storage = QUANTISED.get(format.upper())
    rows, cols = weight.shape[-2:]
    if storage is None or cols % storage.block:
        return None
    found = None if format in GRID_TYPES else _mapping(format)
    if found is None and format not in GRID_TYPES:
        return None
    panels = weight.core.copy_bytes(slot).reshape(-(-rows // _PANEL), -1)
    blocks = cols // storage.block
    out = np.empty((len(panels), _PANEL, blocks, storage.block_bytes), np.uint8)
    step = max(1, _CHUNK_BYTES // max(1, out[0].size))
    for first in range(0, len(panels), step):
        part = panels[first : first + step]
        if found is None:
            out[first : first + step] = grid_blocks(format, part, blocks)
        else:
            out[first : first + step] = _moved(found, part, blocks)
    whole = np.ascontiguousarray(out.reshape(-1, blocks * storage.block_bytes))
    # With the rows that fill the last panel: packed from values they are not those of no bytes.
    again = PackedWeight.empty(format, (len(whole), cols))
    again.fill_blocks(0, whole)
    if not np.array_equal(again.core.copy_bytes(0), panels.reshape(-1)):
        return None
    return np.ascontiguousarray(whole[:rows])


def _moved(found: _Map, panels: Bytes, blocks: int) -> Bytes:
    """uint8 [panels, 16, blocks, bytes of a block]."""
    offsets = np.arange(blocks)[None, :, None] * found.stride
    values = np.zeros((len(panels), _PANEL, blocks, found.flip.shape[1]), np.uint8)
    for source, down, up, mask in zip(found.source, found.down, found.up, found.mask, strict=True):
        taken = panels[:, source[:, None, :] + offsets]
        values |= ((taken >> down[:, None, :]) << up[:, None, :]) & mask[:, None, :]
    return values ^ found.flip[:, None, :]


@lru_cache(maxsize=64)
def _mapping(format: str) -> _Map | None:
    storage = QUANTISED[format.upper()]
    if format not in format_names():
        return None
    nbytes = storage.block_bytes
    bits = 8 * nbytes
    places = np.empty((_PANEL, bits), np.int64)
    flips = np.empty((_PANEL, bits), np.uint8)
    strides: set[int] = set()
    zero = _panels(format, np.zeros((1, _PANEL, 2 * nbytes), np.uint8))[0]
    for row in range(_PANEL):
        probes = np.zeros((bits, _PANEL, 2 * nbytes), np.uint8)
        each = np.arange(bits)
        probes[each, row, each // 8] = 1 << (each % 8)
        changed = np.unpackbits(_panels(format, probes) ^ zero, axis=1, bitorder="little")
        # A sign that is kept in more bits than the file's changes several at once.
        if not changed.any(1).all():
            return None
        places[row] = changed.argmax(1)
        flips[row] = np.unpackbits(zero, bitorder="little")[places[row]]
        second = np.zeros((1, _PANEL, 2 * nbytes), np.uint8)
        second[0, row, nbytes] = 1
        moved = np.unpackbits(_panels(format, second)[0] ^ zero, bitorder="little").argmax()
        strides.add(int(moved) - int(places[row, 0]))
    if len(strides) != 1 or min(strides) % 8 or len(set(places.ravel().tolist())) != places.size:
        return None
    return _terms(places, flips, min(strides) // 8)


def _panels(format: str, blocks: Bytes) -> Bytes:
    """The panels [n, bytes] of blocks [n, 16, bytes of two blocks]."""
    count, rows, row_bytes = blocks.shape
    cols = 2 * QUANTISED[format.upper()].block
    weight = PackedWeight.empty(format, (count * rows, cols))
    weight.fill_blocks(0, blocks.reshape(count * rows, row_bytes))
    return weight.core.copy_bytes(0).reshape(count, -1)


def _terms(places: npt.NDArray[np.int64], flips: Bytes, stride: int) -> _Map:
    """The bits of a byte that come from one byte by one shift are taken together."""
    rows, bits = places.shape
    found: dict[tuple[int, int], dict[tuple[int, int], int]] = {}
    for row in range(rows):
        for bit in range(bits):
            source, place = divmod(int(places[row, bit]), 8)
            terms = found.setdefault((row, bit // 8), {})
            key = source, bit % 8 - place
            terms[key] = terms.get(key, 0) | 1 << (bit % 8)
    most = max(len(terms) for terms in found.values())
    shape = most, rows, bits // 8
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.zeros(shape, np.int64 if name == "source" else np.uint8)
        for name in ("source", "down", "up", "mask")
    }
    for (row, byte), terms in found.items():
        for n, ((source, shift), mask) in enumerate(terms.items()):
            arrays["source"][n, row, byte] = source
            arrays["down"][n, row, byte] = max(-shift, 0)
            arrays["up"][n, row, byte] = max(shift, 0)
            arrays["mask"][n, row, byte] = mask
    flip = np.packbits(flips, axis=1, bitorder="little")
    return _Map(arrays["source"], arrays["down"], arrays["up"], arrays["mask"], flip, stride)
