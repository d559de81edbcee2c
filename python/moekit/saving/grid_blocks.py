"""Panels of ggml's grid types (IQ1, IQ2, IQ3) as the blocks of a GGUF file.

In memory (csrc/moe/quant/grid_block.h) a weight has bits of its own: its size's number and its
sign, or one of three values (IQ1). A point of the grid is found again by its sizes, and the fields
of a block are put where `checkpoint.ggml_iq` reads them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.integer[Any]]
_PANEL = 16  # rows side by side in a panel


@dataclass(frozen=True, slots=True)
class _Fields:
    """Of n blocks: what their files say, one number for each field."""

    d: Bytes  # [n, 2]
    steps: Words  # [n, 8 or 16]
    codes: Words  # [n, 32 or 64]
    signs: Words  # [n, 32], eight a byte; IQ1: whether points are moved up


@cache
def _codes_of(name: str) -> Words:
    """The code of the point whose sizes' numbers are the digits of an index."""
    points = _core.ggml_grid(name)
    sizes, numbers = np.unique(points, return_inverse=True)
    bits = 3 if len(sizes) > 4 else 2
    keys = _joined(numbers.reshape(points.shape).astype(np.uint32), bits)
    codes = np.zeros(1 << (bits * points.shape[1]), np.uint32)
    codes[keys] = np.arange(len(points), dtype=np.uint32)
    return codes


def _joined(fields: Words, bits: int) -> Words:
    """[..., k] fields of `bits` bits as one number each, the first lowest."""
    shifts = np.arange(fields.shape[-1], dtype=np.uint32) * np.uint32(bits)
    joined: Words = np.bitwise_or.reduce(fields.astype(np.uint32) << shifts, axis=-1)
    return joined


def _rows_first(fields: Words) -> Words:
    """[panels, blocks, words, 16, 4] as [panels * 16 * blocks, columns]."""
    panels, blocks, words = fields.shape[:3]
    return fields.transpose(0, 3, 1, 2, 4).reshape(panels * _PANEL * blocks, words * 4)


def _eight_values(panels: Bytes) -> tuple[Words, Words, int]:
    """IQ2: numbers of sizes and signs; codes of three bits."""
    lines = panels[..., :1536].reshape(*panels.shape[:2], 8, 3, _PANEL, 4).astype(np.uint32)
    a, b, c = lines[:, :, :, 0], lines[:, :, :, 1], lines[:, :, :, 2]
    words = [line >> shift & 7 for line in (a, b, c) for shift in (0, 3)]
    words += [a >> 6 | (c >> 6 & 1) << 2, b >> 6 | (c >> 7) << 2]
    codes = np.stack(words, axis=3).reshape(*panels.shape[:2], 64, _PANEL, 4)
    rows = _rows_first(codes)
    return rows & 3, rows >> 2, 1536


def _sixteen_values(panels: Bytes) -> tuple[Words, Words, int]:
    """IQ3: codes of four bits, in nibbles."""
    lines = panels[..., :2048].reshape(*panels.shape[:2], 32, 1, _PANEL, 4).astype(np.uint32)
    codes = np.concatenate([lines & 15, lines >> 4], axis=3)
    rows = _rows_first(codes.reshape(*panels.shape[:2], 64, _PANEL, 4))
    return rows & 7, rows >> 3, 2048


def _odd_values(panels: Bytes) -> tuple[Words, Words, int]:
    """IQ3_S: the values -15, -13, ... 15 by their number."""
    low, high, end = _sixteen_values(panels)
    return np.where(high == 0, 7 - low, low), 1 - high, end


def _three_values(panels: Bytes) -> tuple[Words, Words, int]:
    """IQ1: codes of two bits, then masks of the rows that are moved up."""
    unit = 136 if panels.shape[-1] == _KINDS["iq1_m"].nbytes else 130
    units = panels[..., : 8 * unit].reshape(*panels.shape[:2], 8, unit)
    lines = units[..., :128].reshape(*panels.shape[:2], 8, 2, 1, _PANEL, 4).astype(np.uint32)
    shifts = np.arange(0, 8, 2, dtype=np.uint32)[:, None, None]
    rows = _rows_first((lines >> shifts & 3).reshape(*panels.shape[:2], 64, _PANEL, 4))
    masks = np.ascontiguousarray(units[..., 128:]).view("<u2").astype(np.uint32)
    up = masks.reshape(*panels.shape[:2], 1, -1) >> np.arange(_PANEL, dtype=np.uint32)[:, None] & 1
    up = up.transpose(0, 2, 1, 3).reshape(len(rows), -1)
    return rows, np.repeat(up, 32 // up.shape[1], axis=1), 8 * unit


def _fields_of(format: str, panels: Bytes) -> _Fields:
    """`panels` is [panels, blocks, bytes of a block of sixteen rows]."""
    numbers, signs, end = _KINDS[format].values(panels)
    points = _codes_of("iq1" if format.startswith("iq1") else format)
    bits = 3 if format.startswith("iq3") else 2
    width = 4 if bits == 3 else 8
    d = panels[..., end : end + 32].reshape(*panels.shape[:2], _PANEL, 2)
    pairs = panels[..., end + 32 :].reshape(*panels.shape[:2], -1, 1, _PANEL)
    steps = np.concatenate([pairs & 15, pairs >> 4], axis=3)
    steps = steps.reshape(*panels.shape[:2], -1, _PANEL).transpose(0, 3, 1, 2)
    if not format.startswith("iq1"):
        signs = _joined(signs.reshape(-1, 32, 8), 1)
    return _Fields(
        np.ascontiguousarray(d.transpose(0, 2, 1, 3)).reshape(-1, 2),
        np.ascontiguousarray(steps).reshape(len(numbers), -1).astype(np.uint32),
        points[_joined(numbers.reshape(len(numbers), -1, width), bits)],
        signs,
    )


def _stored(fields: Words, bits: int) -> Bytes:
    """[n, k] fields of `bits` bits, the first lowest, as bytes."""
    return _joined(fields.reshape(len(fields), -1, 8 // bits), bits).astype(np.uint8)


def _bytes(words: Words, dtype: str) -> Bytes:
    return words.astype(dtype).view(np.uint8).reshape(len(words), -1)


def _sign_words(f: _Fields) -> Words:
    return _joined((f.signs & 127).reshape(-1, 8, 4), 7) | f.steps << 28


def _iq2_xxs(f: _Fields) -> list[Bytes]:
    codes = _joined(f.codes.reshape(-1, 8, 4), 8)
    return [f.d, _bytes(np.stack([codes, _sign_words(f)], axis=2), "<u4")]


def _iq2_xs(f: _Fields) -> list[Bytes]:
    return [f.d, _bytes(f.codes | (f.signs & 127) << 9, "<u2"), _stored(f.steps, 4)]


def _iq2_s(f: _Fields) -> list[Bytes]:
    high = _stored(f.codes >> 8, 2)
    return [f.d, _bytes(f.codes & 255, "u1"), _bytes(f.signs, "u1"), high, _stored(f.steps, 4)]


def _iq3_xxs(f: _Fields) -> list[Bytes]:
    return [f.d, _bytes(f.codes, "u1"), _bytes(_sign_words(f), "<u4")]


def _iq3_s(f: _Fields) -> list[Bytes]:
    high = _stored(f.codes >> 8, 1)
    return [f.d, _bytes(f.codes & 255, "u1"), high, _bytes(f.signs, "u1"), _stored(f.steps, 4)]


def _iq1_s(f: _Fields) -> list[Bytes]:
    words = _joined((f.codes >> 8).reshape(-1, 8, 4), 3) | f.steps << 12
    words |= (1 - f.signs[:, ::4]) << 15
    return [f.d, _bytes(f.codes & 255, "u1"), _bytes(words, "<u2")]


def _iq1_m(f: _Fields) -> list[Bytes]:
    nibbles = _stored(f.codes >> 8 | (1 - f.signs) << 3, 4)
    d = np.ascontiguousarray(f.d).view("<u2").astype(np.uint32)
    parts = d >> np.arange(0, 16, 4, dtype=np.uint32) & 15
    words = _joined(f.steps.reshape(-1, 4, 4), 3) | parts << 12
    return [_bytes(f.codes & 255, "u1"), nibbles, _bytes(words, "<u2")]


@dataclass(frozen=True, slots=True)
class _Kind:
    nbytes: int  # of a block of sixteen rows
    values: Callable[[Bytes], tuple[Words, Words, int]]
    store: Callable[[_Fields], list[Bytes]]


_KINDS = {
    "iq1_s": _Kind(1136, _three_values, _iq1_s),
    "iq1_m": _Kind(1248, _three_values, _iq1_m),
    "iq2_xxs": _Kind(1632, _eight_values, _iq2_xxs),
    "iq2_xs": _Kind(1696, _eight_values, _iq2_xs),
    "iq2_s": _Kind(1696, _eight_values, _iq2_s),
    "iq3_xxs": _Kind(2144, _sixteen_values, _iq3_xxs),
    "iq3_s": _Kind(2144, _odd_values, _iq3_s),
}
GRID_TYPES = frozenset(_KINDS)


def grid_blocks(format: str, panels: Bytes, blocks: int) -> Bytes:
    """uint8 [panels, 16, blocks, bytes of a block] of panels [panels, bytes]."""
    kind = _KINDS[format]
    apart = panels[:, : blocks * kind.nbytes].reshape(len(panels), blocks, kind.nbytes)
    stored = np.concatenate(kind.store(_fields_of(format, apart)), axis=1)
    return stored.reshape(len(panels), _PANEL, blocks, -1)
