"""A checkpoint's tensors as the parts of a model: one tensor at a time, read, packed, dropped.

A family asks for each weight by name and shape. What it asks for must be there in that shape, and
what is there must be asked for: a tensor too many is as much a sign of a wrong reading as one too
few.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .. import ops
from ..checkpoint import KEPT_DTYPES, Piece, Weights
from ..checkpoint.ggml_types import QUANTISED
from ..errors import FileError
from ..nn import MLP, Experts, LayerNorm, Linear, RMSNorm, Router
from ..ops import PackedWeight
from ..ops.paged_experts import PagedExperts, PagedWeight, Pages
from .expert_layouts import PARTS, Layout, expert_biases, expert_pieces, fused_pieces

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


@dataclass(frozen=True, slots=True)
class Formats:
    """The packed format of each class of weights; None keeps what the file holds.

    `embedding` is a dtype instead: rows of a table are looked up, not multiplied.
    """

    experts: str | None = None
    attention: str | None = None
    dense: str | None = None
    head: str | None = None
    embedding: str | None = None
    router: str = "f32"

    @classmethod
    def of(cls, format: str | None, router_format: str = "f32") -> "Formats":
        """One format for all large weights.

        Below 8 bits the head takes 8, in ggml's types where the others do (a GGUF file can say it
        then): it is read once a token, and its errors go straight into the logits. The table of
        embeddings has 16 bits wherever weights have 16 or fewer.
        """
        if format is None:
            return cls(router=router_format)
        bits = _bits_of(format)
        eight_bits = "q8_0" if format.upper() in QUANTISED else "int8"
        head = format if bits >= 8 else eight_bits
        table = {"f32": "f32", "f16": "f16"}.get(format, "bf16")
        return cls(format, format, format, head, table, router_format)


def _bits_of(format: str) -> int:
    found = re.search(r"\d+", format)
    return int(found.group()) if found else 8


class Reader:
    """Hands out parts of a model from `weights` under `prefix`, and remembers what was used."""

    def __init__(
        self,
        weights: Weights,
        formats: Formats,
        progress: Callable[[], None] | None = None,
        prefix: str = "",
        parent: "Reader | None" = None,
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

    def under(self, prefix: str) -> "Reader":
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
            else:
                weight.fill(slot, self._weights.take(part), first)

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

    # -- parts -----------------------------------------------------------------------------

    def linear(
        self, name: str, rows: int, cols: int, kind: str = "attention", bias: bool = False
    ) -> Linear:
        """`name.weight` [rows, cols], and `name.bias` [rows] where there is one."""
        formats = {"attention": self.formats.attention, "head": self.formats.head}
        weight = self.packed(f"{name}.weight", rows, cols, formats.get(kind, self.formats.dense))
        values = self.tensor(f"{name}.bias", rows) if bias else None
        return Linear(weight, values, kind=kind)

    def split_linear(
        self, name: str, sizes: Sequence[int], cols: int, bias: bool = False
    ) -> list[Linear]:
        """Attention matrices of `sizes` rows each, which are one tensor `name.weight`."""
        tensor, total = f"{name}.weight", sum(sizes)
        values = self.tensor(f"{name}.bias", total) if bias else None
        parts, end = [], 0
        for size in sizes:
            rows = slice(end, end + size)
            end += size
            piece = self.piece(tensor, (total, cols), rows=rows)
            weight = PackedWeight.empty(
                self.formats.attention or self.stored_format(tensor), (size, cols)
            )
            self.fill(weight, 0, piece)
            parts.append(Linear(weight, None if values is None else values[rows], kind="attention"))
        return parts

    def norm(self, name: str, size: int, eps: float, offset: float = 0.0) -> RMSNorm:
        """`name.weight` [size]; `offset` 1 where it is stored minus one."""
        return RMSNorm(self.tensor(f"{name}.weight", size), eps, offset=offset)

    def layer_norm(self, name: str, size: int, eps: float, bias: bool = True) -> LayerNorm:
        """`name.weight` and, with `bias`, `name.bias`, both [size]."""
        values = self.tensor(f"{name}.bias", size) if bias else None
        return LayerNorm(self.tensor(f"{name}.weight", size), values, eps)

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

    def pack_table(self, table: Array) -> PackedWeight:
        """A tied head: the table of embeddings once more, in the kernels' order."""
        kept = {"float32": "f32", "float16": "f16"}.get(table.dtype.name, "bf16")
        return ops.pack(table, format=self.formats.head or kept)

    def router(
        self, name: str, count: int, hidden: int, k: int, *, bias: bool = False, **rule: Any
    ) -> Router:
        """`name.weight` [E, H] with `ops.route`'s keywords; `bias`: `name.bias` [E] as well."""
        weight = self.packed(f"{name}.weight", count, hidden, self.formats.router)
        values = self.tensor(f"{name}.bias", count) if bias else None
        return Router(weight, k, bias=values, **rule)

    def experts(
        self,
        name: str,
        count: int,
        inner: int,
        hidden: int,
        parts: Sequence[str | None] = PARTS,
        *,
        layout: Layout = Layout(),  # noqa: B008 - frozen
        **options: Any,
    ) -> Experts:
        """The experts of a layer, packed one by one into banks that were allocated before.

        Either `name.N.{gate,up,down}.weight` for each expert, under the names in `parts` (the
        first None for experts without a gate), or the fused banks that `layout` describes.
        `options` are those of `Experts`.
        """
        options.setdefault("activation", self.activation)
        full = self._prefix + name
        # All pieces before any memory: a wrong count or size must not ask for terabytes.
        pieces = expert_pieces(self, name, count, inner, hidden, parts, layout)
        biases: dict[str, Any] = {}
        if layout.bias:
            biases = dict(expert_biases(self, name, count, inner, hidden, layout))
        wide, tall = (count, inner, hidden), (count, hidden, inner)
        shapes = {"gate": wide, "up": wide, "down": tall}
        # Gate and up are read together and share a format.
        formats = {"down": self._bank_format(pieces["down"])}
        formats["gate"] = formats["up"] = self._bank_format(pieces.get("gate", []) + pieces["up"])
        if self._pages is not None:
            paged = {
                role: self._paged(pieces[role], formats[role], shapes[role], full, role)
                for role in pieces
            }
            return PagedExperts(self._pages, paged, **biases, **options)
        banks = {role: PackedWeight.empty(formats[role], shapes[role]) for role in pieces}
        for expert in range(count):
            for role, bank in banks.items():
                self.fill(bank, expert, pieces[role][expert], full, role)
        return Experts(banks.get("gate"), banks["up"], banks["down"], **biases, **options)

    def _paged(
        self,
        pieces: Sequence[Piece],
        format: str,
        shape: tuple[int, int, int],
        bank: str,
        role: str,
    ) -> PagedWeight:
        """A bank whose matrices are packed when they are asked for."""

        def read(expert: int) -> PackedWeight:
            weight = PackedWeight.empty(format, (1, *shape[1:]))
            self._pack(weight, 0, pieces[expert])
            return weight

        paged = PagedWeight(format, shape, read)
        self.placed += [
            Placed(piece, paged, expert, bank, role) for expert, piece in enumerate(pieces)
        ]
        return paged

    def _bank_format(self, pieces: Sequence[Piece]) -> str:
        """One format for all experts: the first that every stored one can be kept in."""
        if self.formats.experts is not None:
            return self.formats.experts
        known = ops.format_names()
        offers = self._offers(pieces)
        for format in offers[0]:
            if format in known and all(format in offer for offer in offers):
                return format
        return "bf16"

    def gated_mlp(
        self,
        name: str,
        inner: int,
        hidden: int,
        kind: str = "dense",
        parts: Sequence[str | None] = PARTS,
        *,
        layout: Layout | None = None,
        bias: bool = False,
        **options: Any,
    ) -> Experts:
        """`name.{gate,up,down}.weight`, under the names in `parts`, as an `Experts` of one.

        `layout`: gate and up are one matrix. `bias`: each part has one. `options` are those of
        `Experts`.
        """
        options.setdefault("activation", self.activation)
        shapes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
        if layout is not None and f"{name}.{layout.both}" in self:
            fused = fused_pieces(self, name, None, inner, hidden, layout)
            pieces = {role: found[0] for role, found in fused.items()}
        else:
            names = dict(zip(shapes, parts, strict=True))
            pieces = {
                role: self.piece(f"{name}.{part}.weight", shapes[role])
                for role, part in names.items()
                if part is not None
            }
            if bias:
                for role in pieces:
                    values = self.tensor(f"{name}.{names[role]}.bias", shapes[role][0])
                    options[f"{role}_bias"] = values[None]
        format = self.formats.experts if kind == "shared" else self.formats.dense
        # Gate and up are read together and share a format.
        formats = {role: format or self._kept_format(piece) for role, piece in pieces.items()}
        if formats.get("gate", formats["up"]) != formats["up"]:
            formats["gate"] = formats["up"] = "q8_0"
        banks: dict[str, PackedWeight] = {}
        for role, piece in pieces.items():
            banks[role] = PackedWeight.empty(formats[role], (1, *shapes[role]))
            self.fill(banks[role], 0, piece, self._prefix + name, role)
        return Experts(banks.get("gate"), banks["up"], banks["down"], **options)

    def mlp(self, name: str, inner: int, hidden: int, **options: Any) -> MLP:
        """A dense feed-forward layer; options as in `gated_mlp`."""
        return MLP(self.gated_mlp(name, inner, hidden, **options))

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
