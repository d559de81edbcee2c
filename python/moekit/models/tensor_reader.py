"""A checkpoint's tensors, one at a time: read, packed, dropped.

What is asked for must be there in that shape, and what is there must be asked for: a tensor too
many is as much a sign of a wrong reading as one too few.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .. import ops
from ..checkpoint import KEPT_DTYPES, Piece, Weights
from ..errors import FileError
from ..ops import PackedWeight
from ..ops.paged_experts import Pages
from .formats import Formats

Array = npt.NDArray[Any]

# Tensors that hold nothing a model would need: tables derived from the configuration.
_DERIVED = re.compile(r"(rotary_emb\.inv_freq|\.masked_bias|\.attn\.bias)$")
INTEGER_DTYPES = ("I64", "I32")
# Dtypes of the embedding table; one that is stored quantised becomes bfloat16.
_TABLE_DTYPES: dict[str, Any] = {"f32": np.float32, "f16": np.float16}
# Matrices are read and packed in parts of so many values: this many, or more where the file's
# bytes, shifted so far, are more, which keeps more threads busy; at most so many.
_PART_VALUES = 1 << 18
_PART_SHARE = 10
_MOST_VALUES = 1 << 22


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a piece of a stored tensor went: matrix `slot` of `weight`, or a plain array (slot -1).

    `bank` and `role` ("gate", "up", "down") name the experts of a layer that it belongs to.
    """

    piece: Piece
    weight: PackedWeight | Array
    slot: int = -1
    bank: str = ""
    role: str = ""


class TensorReader:
    """Hands out tensors of `weights` under `prefix`, packed, and remembers what was used."""

    def __init__(
        self,
        weights: Weights,
        formats: Formats,
        progress: Callable[[], None] | None = None,
        prefix: str = "",
        parent: "TensorReader | None" = None,
        *,
        pages: Pages | None = None,
        max_memory: int | None = None,
    ) -> None:
        self._weights = weights
        self.formats = formats
        self._progress = progress
        self._prefix = prefix
        # Of all feed-forward parts that do not name one.
        self.activation: str = parent.activation if parent else "silu"
        self._used: set[str] = parent._used if parent else set()
        self.placed: list[Placed] = parent.placed if parent else []
        # With pages, experts are left in the file; what else there is counts against max_memory.
        self._pages: Pages | None = parent._pages if parent else pages
        self._max_memory: int | None = parent._max_memory if parent else max_memory
        self._resident: dict[int, int] = parent._resident if parent else {}
        # Bytes of the file.
        self._size: int = parent._size if parent else weights.checkpoint.nbytes

    def under(self, prefix: str) -> Self:
        """A reader whose names all begin with `prefix` and a dot."""
        full = f"{self._prefix}{prefix}."
        return type(self)(self._weights, self.formats, self._progress, full, self)

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._weights

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the file has a tensor in. FileError if it is missing."""
        return self._weights.info(self._prefix + name).shape

    def first_of(self, *names: str) -> str:
        """The first of several spellings that the file has, else the first one."""
        return next((name for name in names if name in self), names[0])

    def has_any(self, prefix: str) -> bool:
        """True if some tensor's name begins with `prefix`."""
        return any(name.startswith(self._prefix + prefix) for name in self._weights)

    def ignore(self, name: str) -> None:
        """Accept a tensor that is not needed."""
        self._used.add(self._prefix + name)

    # -- tensors ---------------------------------------------------------------------------

    def _claim(self, name: str, shape: Sequence[int], dtypes: Collection[str] = KEPT_DTYPES) -> str:
        """The full name of a tensor that must exist in this shape; counted as used."""
        full = self._prefix + name
        info = self._weights.info(full)
        if info.shape != tuple(shape):
            raise FileError(
                f"[load] {self._path}: tensor {full} has shape {list(info.shape)}; "
                f"{list(shape)} is required by config.json"
            )
        first = self._weights.checkpoint.info(next(iter(info.parts.values())))
        if info.scheme == "plain" and first.dtype not in dtypes:
            raise FileError(
                f"[load] {self._path}: tensor {full} has dtype {first.dtype}; "
                f"one of {', '.join(dtypes)} is required"
            )
        self._used.add(full)
        return full

    @property
    def _path(self) -> str:
        return self._weights.checkpoint.path

    def _note(self, placed: Placed) -> None:
        """One more piece has its place; MemoryError where all are more than is allowed."""
        self.placed.append(placed)
        if self._max_memory is not None:
            self._resident[id(placed.weight)] = placed.weight.nbytes
            total = sum(self._resident.values())
            if total > self._max_memory:
                raise MemoryError(
                    f"[load] max_memory {self._max_memory}: weights that every token needs take "
                    f"{total} bytes up to {placed.piece.name}, experts not counted; more is "
                    "required"
                )
        if self._progress is not None:
            self._progress()

    def tensor(self, name: str, *shape: int) -> Array:
        """A small tensor in float32, such as the weight of a norm."""
        full = self._claim(name, shape)
        value = np.asarray(self._weights[full], np.float32)
        self._note(Placed(Piece(full), value))
        return value

    def integers(self, name: str, *shape: int) -> Array:
        """A table of integers, such as a hash layer's."""
        full = self._claim(name, shape, INTEGER_DTYPES)
        value: Array = self._weights[full]
        self._note(Placed(Piece(full), value))
        return value

    def tensor_of(self, name: str, shape: tuple[int, ...], *others: tuple[int, ...]) -> Array:
        """A small tensor in float32 and `shape`; the file may have it in one of `others`."""
        found = self.shape(name)
        return self.tensor(name, *(found if found in others else shape)).reshape(shape)

    def stored_format(self, name: str) -> str:
        """The packed format that keeps a tensor as the file has it, or the nearest there is."""
        return self._kept_format(Piece(self._prefix + name))

    def _kept_format(self, piece: Piece) -> str:
        return self._nearest(self._weights.formats(piece))

    @staticmethod
    def _nearest(wanted: Sequence[str]) -> str:
        known = ops.format_names()
        return next((format for format in wanted if format in known), "bf16")

    def kept_formats(self, pieces: Sequence[Piece]) -> str | list[str]:
        """What keeps the matrices of a bank as the file has them: one format, or one for each."""
        found = [self._nearest(offer) for offer in self._offers(pieces)]
        return found[0] if len(set(found)) == 1 else found

    def _offers(self, pieces: Sequence[Piece]) -> list[tuple[str, ...]]:
        """What each piece may be kept in; the same part of several experts is looked at once."""
        found: dict[str, tuple[str, ...]] = {}
        keys = [f"{p.rows} {p.cols} {p.transposed} {p.name}" for p in pieces]
        for key, piece in zip(keys, pieces, strict=True):
            if key not in found:
                found[key] = self._weights.formats(piece)
        return [found[key] for key in keys]

    def piece(self, name: str, shape: Sequence[int], **place: Any) -> Piece:
        """A claim on a part of a tensor that has this shape; `place` is that of `Piece`."""
        return Piece(self._claim(name, shape), **place)

    def fill(
        self, weight: PackedWeight, slot: int, piece: Piece, bank: str = "", role: str = ""
    ) -> None:
        """Pack a piece as matrix `slot`, and note where it went."""
        self._pack(weight, slot, piece)
        self._note(Placed(piece, weight, slot, bank, role))

    def _pack(self, weight: PackedWeight, slot: int, piece: Piece) -> None:
        """With the file's own bytes where they mean the same; a large one some rows at a time."""
        format = weight.expert_format(slot)
        rows, cols = weight.shape[-2:]
        for first, last in self._runs(rows, cols, weight.row_step(slot)):
            part = piece if last - first == rows else self._part(piece, first, last)
            blocks = self._weights.blocks(part, format)
            if blocks is not None:
                weight.fill_blocks(slot, blocks, first)
                continue
            values = self._weights.take(part)
            try:
                weight.fill(slot, values, first)
            except ValueError as error:  # NaN, where the format has none
                raise FileError(f"[load] {self._path}: tensor {piece.name}: {error}") from None

    def _part(self, piece: Piece, first: int, last: int) -> Piece:
        return piece.part(first, last, self._weights.info(piece.name).shape[-2:])

    def _runs(self, rows: int, cols: int, unit: int) -> Iterator[tuple[int, int]]:
        """Runs of rows of a matrix, a multiple of `unit` each, whose floats are few at a time."""
        values = min(max(self._size >> _PART_SHARE, _PART_VALUES), _MOST_VALUES)
        step = max(1, values // cols // unit) * unit
        for first in range(0, rows, step):
            yield first, min(first + step, rows)

    def packed(self, name: str, rows: int, cols: int, format: str | None) -> PackedWeight:
        """A matrix [rows, cols], packed; `format` None keeps the stored one."""
        piece = self.piece(name, (rows, cols))
        weight = PackedWeight.empty(format or self.stored_format(name), (rows, cols))
        self.fill(weight, 0, piece)
        return weight

    def embedding(self, name: str, vocab: int, hidden: int) -> Array:
        """The table `name.weight` [V, H] in a 16- or 32-bit float dtype."""
        full = f"{name}.weight"
        piece = self.piece(full, (vocab, hidden))
        format = self.formats.embedding or self.stored_format(full)
        dtype = np.dtype(_TABLE_DTYPES.get(format, ml_dtypes.bfloat16))
        table: Array
        if self._weights.dtype(piece.name) == dtype:
            table = self._weights.take(piece)
        else:
            table = np.empty((vocab, hidden), dtype)
            for first, last in self._runs(vocab, hidden, 1):
                table[first:last] = self._weights.take(self._part(piece, first, last))
        self._note(Placed(piece, table))
        return table

    @property
    def passed_over(self) -> list[str]:
        """Tensors of the file that the model has no use for, and accepts."""
        return sorted(self._used - {placed.piece.name for placed in self.placed})

    # -- the end ---------------------------------------------------------------------------

    def require_all_used(self, ignored: Callable[[str], bool]) -> None:
        """FileError naming tensors that no part asked for, derived tables and `ignored` apart."""
        extra = [
            name
            for name in self._weights
            if name not in self._used
            and not _DERIVED.search(name)
            and not ignored(name)
            # Matrices of shared experts where there are none of these.
            and not (".shared_" in name and 0 in self._weights.info(name).shape)
        ]
        if extra:
            more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
            raise FileError(
                f"[load] {self._path}: unexpected tensors {', '.join(sorted(extra)[:3])}{more}; "
                "the architecture has no place for them"
            )
