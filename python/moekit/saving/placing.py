"""Which matrices of a model make up each tensor of a file.

A model remembers where each piece of a stored tensor went (`Placed`). Under the names that it was
read by, the pieces fill the same tensors again. Hugging Face's grouping and GGUF's meet in the one
that `GgufWeights` shows: banks `<experts>.<role>_exps`, latent projections apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..checkpoint import ALL, Piece
from ..checkpoint.gguf_architectures import Architecture, Banks
from ..models.tensor_reader import Placed
from ..ops import PackedWeight

Array = npt.NDArray[Any]
ROLES = ("gate", "up", "down")
# Dtype and shape of every tensor that a model was read from.
Outline: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(slots=True)
class Tensor:
    """A tensor of a file: its shape, and what fills which piece of it.

    With an `order` the file has these of its rows, in this order, with `columns` its columns so.
    Without parts it is zeros, in the file's `dtype`.
    """

    shape: tuple[int, ...]
    parts: list[tuple[Piece, Placed]] = field(default_factory=list)
    order: npt.NDArray[np.int64] | None = None
    columns: npt.NDArray[np.int64] | None = None
    dtype: str = ""

    @property
    def format(self) -> str:
        """The packed format of all parts, "" for plain arrays and for parts that differ."""
        found = {format_of(placed) for _, placed in self.parts}
        return found.pop() if len(found) == 1 else ""


def plain_tensor(name: str, values: Array) -> Tensor:
    """A tensor of these values."""
    return Tensor(values.shape, [(Piece(name), Placed(Piece(name), values))])


def format_of(placed: Placed) -> str:
    """The packed format of a matrix; "" for an array."""
    if not isinstance(placed.weight, PackedWeight):
        return ""
    formats = placed.weight.format
    return formats if isinstance(formats, str) else formats[placed.slot]


def value_of(placed: Placed) -> Array:
    """The matrix in float32, or the array as it is."""
    if isinstance(placed.weight, PackedWeight):
        return placed.weight.unpack_expert(placed.slot)
    return placed.weight


def assembled(tensor: Tensor, dtype: Any) -> Array:
    """The tensor's values in `dtype`; zeros for one that the model has no part of."""
    out = np.empty(tensor.shape, dtype) if tensor.parts else np.zeros(tensor.shape, dtype)
    for piece, placed in tensor.parts:
        value = value_of(placed)
        matrix = out if piece.expert is None else out[piece.expert]
        if piece.whole:
            matrix[...] = value.reshape(matrix.shape)
        else:
            piece.of(matrix)[...] = value
    return out


def as_read(placed: Sequence[Placed], outline: Outline) -> dict[str, Tensor]:
    """Tensors under the names, and in the grouping, that the model was read by."""
    out: dict[str, Tensor] = {}
    for place in placed:
        name = place.piece.name
        out.setdefault(name, Tensor(outline[name][1])).parts.append((place.piece, place))
    return out


def with_zero_experts(tensors: Mapping[str, Tensor], outline: Outline) -> dict[str, Tensor]:
    """LongCat-Flash's banks as a tensor for each expert and part, as it is published.

    In memory transformers has gates and ups of experts that do nothing, too, and wants to find
    them: they become zeros.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if len(tensor.shape) != 3:
            out[name] = tensor
            continue
        for _, place in tensor.parts:
            new = f"{place.bank}.{place.slot}.{place.role}_proj.weight"
            out[new] = Tensor(place.weight.shape[-2:], [(Piece(new), place)])
        bank, shape = tensor.parts[0][1].bank, tensor.parts[0][1].weight.shape
        for expert in range(shape[0], tensor.shape[0]):
            for role in ("gate", "up"):
                new = f"{bank}.{expert}.{role}_proj.weight"
                out[new] = Tensor(shape[-2:], dtype=outline[name][0])
    return out


def require_complete(tensors: Mapping[str, Tensor]) -> None:
    """ValueError naming a tensor of which the model holds only a part."""
    for name, tensor in tensors.items():
        held = sum(_size(placed) for _, placed in tensor.parts)
        if tensor.parts and held != prod(tensor.shape):
            raise ValueError(
                f"[save] {name}: the model holds {held} of its {prod(tensor.shape)} values; all of "
                "them are required"
            )


def _size(placed: Placed) -> int:
    if isinstance(placed.weight, PackedWeight):
        return prod(placed.weight.shape[-2:])
    return int(placed.weight.size)


def _inner(row: Architecture, name: str) -> str:
    """A name without `model.layers.N.`."""
    return name.removeprefix(row.prefix).partition(".")[2] if name.startswith(row.prefix) else name


# -- Hugging Face's grouping to GGUF's -----------------------------------------------------------


def in_banks(row: Architecture, placed: Sequence[Placed], outline: Outline) -> dict[str, Tensor]:
    """Tensors in GGUF's grouping, of a model in either."""
    out: dict[str, Tensor] = {}
    for place in placed:
        for name, shape, piece, member in _in_banks(row, place, outline):
            out.setdefault(name, Tensor(shape)).parts.append((piece, member))
    return out


def _in_banks(
    row: Architecture, place: Placed, outline: Outline
) -> Iterator[tuple[str, tuple[int, ...], Piece, Placed]]:
    name, weight = place.piece.name, place.weight
    bank, inner = _inner(row, place.bank), _inner(row, name)
    if not isinstance(weight, PackedWeight):
        yield from _arrays_in_banks(row, place, weight, outline)
    elif place.bank and bank == row.experts:
        new = f"{place.bank}.{place.role}_exps"
        yield new, weight.shape, Piece(new, expert=place.slot), place
    elif bank in row.shared:
        new = f"{place.bank}.{place.role}_proj.weight"
        yield new, weight.shape[-2:], Piece(new), place
    elif inner.endswith("kv_b_proj.weight"):
        new = name.replace("kv_b_proj", "k_b_proj" if place.piece.transposed else "v_b_proj")
        yield new, weight.shape, Piece(new, expert=place.slot), place
    else:
        yield name, outline[name][1], place.piece, place


def _arrays_in_banks(
    row: Architecture, place: Placed, array: Array, outline: Outline
) -> Iterator[tuple[str, tuple[int, ...], Piece, Placed]]:
    name = place.piece.name
    inner = _inner(row, name)
    if inner == f"{row.experts}.{row.banks.both}_bias":
        base = name.removesuffix(f"{row.banks.both}_bias")
        for role, half in zip(ROLES, _halves(row.banks, array.shape[1] // 2), strict=False):
            part = np.ascontiguousarray(array[:, half])
            new = f"{base}{role}_exps_bias"
            yield new, part.shape, Piece(new), Placed(Piece(new), part)
    elif inner == f"{row.experts}.{row.banks.down}_bias":
        new = name.removesuffix(f"{row.banks.down}_bias") + "down_exps_bias"
        yield new, array.shape, Piece(new), place
    else:
        yield name, outline[name][1], place.piece, place


def _halves(banks: Banks, inner: int) -> tuple[slice, slice]:
    if banks.interleaved:
        return slice(0, None, 2), slice(1, None, 2)
    return slice(0, inner), slice(inner, 2 * inner)


# -- and back ------------------------------------------------------------------------------------


def apart(row: Architecture, placed: Sequence[Placed], outline: Outline) -> dict[str, Tensor]:
    """Tensors in Hugging Face's grouping, of a model that was read from GGUF."""
    out: dict[str, Tensor] = {}
    latent = _latent_sizes(placed)
    for place in placed:
        name, shape, piece = _apart(row, place, latent, outline)
        out.setdefault(name, Tensor(shape)).parts.append((piece, place))
    return out


def _latent_sizes(placed: Sequence[Placed]) -> tuple[int, int]:
    """(width of a head's key, of its value) in latent attention."""
    sizes = {"k_b_proj": 0, "v_b_proj": 0}
    for place in placed:
        for which in sizes:
            if f".{which}." in place.piece.name and isinstance(place.weight, PackedWeight):
                axis = -1 if which == "k_b_proj" else -2
                sizes[which] = place.weight.shape[axis]
    return sizes["k_b_proj"], sizes["v_b_proj"]


def _apart(
    row: Architecture, place: Placed, latent: tuple[int, int], outline: Outline
) -> tuple[str, tuple[int, ...], Piece]:
    name, weight, slot = place.piece.name, place.weight, place.slot
    bank, inner = _inner(row, place.bank), _inner(row, name)
    if isinstance(weight, PackedWeight):
        rows, cols = weight.shape[-2:]
        if place.bank and bank == row.experts:
            return _of_bank(row.banks, place.bank, place.role, slot, weight.shape)
        if bank in row.shared:
            banks = row.shared[bank]
            new, shape, piece = _of_bank(banks, place.bank, place.role, 0, (1, rows, cols))
            whole = Piece(new, None, piece.rows, piece.cols, piece.transposed)
            return new, shape[1:], whole
        if inner.endswith(("k_b_proj.weight", "v_b_proj.weight")):
            return _of_latent(name, slot, weight.shape, latent)
        return name, outline[name][1], place.piece
    if inner.startswith(row.experts + ".") and inner.endswith("_exps_bias"):
        role = inner.removesuffix("_exps_bias").rpartition(".")[2]
        base = name.removesuffix(f"{role}_exps_bias")
        count, size = weight.shape
        if role == "down":
            new = f"{base}{row.banks.down}_bias"
            return new, weight.shape, Piece(new)
        half = _halves(row.banks, size)[ROLES.index(role)]
        new = f"{base}{row.banks.both}_bias"
        return new, (count, 2 * size), Piece(new, cols=half)
    return name, weight.shape, place.piece


def _of_bank(
    banks: Banks, bank: str, role: str, slot: int, shape: tuple[int, ...]
) -> tuple[str, tuple[int, ...], Piece]:
    count, rows, cols = shape
    if banks.stacked:
        new = f"{bank}.{banks.parts[ROLES.index(role)]}"
        inner, hidden = (rows, cols) if role != "down" else (cols, rows)
        place = slice(slot * inner, (slot + 1) * inner)
        return new, (count * inner, hidden), Piece(new, rows=place, transposed=role == "down")
    if not banks.both:
        new = f"{bank}.{slot}.{banks.parts[ROLES.index(role)]}.weight"
        return new, (rows, cols), Piece(new)
    if role == "down":
        new = f"{bank}.{banks.down}"
        sizes = (cols, rows) if banks.transposed else (rows, cols)
        return new, (count, *sizes), Piece(new, expert=slot, transposed=banks.transposed)
    new = f"{bank}.{banks.both}"
    half = _halves(banks, rows)[ROLES.index(role)]
    sizes = (cols, 2 * rows) if banks.transposed else (2 * rows, cols)
    where = (ALL, half) if banks.transposed else (half, ALL)
    return new, (count, *sizes), Piece(new, slot, *where, banks.transposed)


def _of_latent(
    name: str, slot: int, shape: tuple[int, ...], latent: tuple[int, int]
) -> tuple[str, tuple[int, ...], Piece]:
    key, value = latent
    is_key = ".k_b_proj." in name
    width = shape[-2] if is_key else shape[-1]
    new = name.replace(".k_b_proj.", ".kv_b_proj.").replace(".v_b_proj.", ".kv_b_proj.")
    first = slot * (key + value) + (0 if is_key else key)
    rows = slice(first, first + (key if is_key else value))
    return new, (shape[0] * (key + value), width), Piece(new, rows=rows, transposed=is_key)
