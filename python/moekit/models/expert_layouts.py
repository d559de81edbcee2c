"""How a checkpoint lays out a layer's experts: one by one, or in banks; which piece is whose.

Gate and up are the first and the second half of a fused bank, or its even and odd rows; a bank is
[E, out, in], or [E, in, out] where the model multiplies from the right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from ..checkpoint import ALL, Piece

if TYPE_CHECKING:
    from .reader import Reader

PARTS = ("gate_proj", "up_proj", "down_proj")
# "gate", "up", "down" -> a piece for each expert.
Pieces: TypeAlias = dict[str, list[Piece]]


@dataclass(frozen=True, slots=True)
class Layout:
    """Fused banks `name.<both>` [E, 2F, H] and `name.<down>` [E, H, F].

    `transposed`: [E, H, 2F] and [E, F, H] instead (Llama 4, gpt-oss). `interleaved`: gate and up
    alternate (gpt-oss). `bias`: `name.<both>_bias` [E, 2F] and `name.<down>_bias` [E, H] exist.
    `spare`: so many experts that only `both` has, behind the others (LongCat-Flash's zero experts).
    `stacked`: three tensors `name.<part>` [E * F, H] instead, an expert's rows behind those of the
    one before, down transposed (DBRX). `each` is what an expert with tensors of its own is called
    by its number.
    """

    both: str = "gate_up_proj"
    down: str = "down_proj"
    transposed: bool = False
    interleaved: bool = False
    bias: bool = False
    spare: int = 0
    stacked: bool = False
    each: str = "{}"

    def halves(self, inner: int) -> tuple[slice, slice]:
        """Where gate and up lie along the fused axis."""
        if self.interleaved:
            return slice(0, None, 2), slice(1, None, 2)
        return slice(0, inner), slice(inner, 2 * inner)


def expert_pieces(
    reader: "Reader",
    name: str,
    count: int,
    inner: int,
    hidden: int,
    parts: Sequence[str | None],
    layout: Layout,
) -> Pieces:
    """Claims every tensor of the experts; FileError for one that is missing or has other sizes.

    A part None is one that the experts do not have: their gate.
    """
    wide, tall = (inner, hidden), (hidden, inner)
    shapes = {"gate": wide, "up": wide, "down": tall}
    if parts[0] is None:
        del shapes["gate"]
        parts = parts[1:]
    if f"{name}.gate_up_exps" in reader:  # newer GGUF files: gate's rows, then up's
        return _fused_banks(reader, name, count, inner, hidden)
    names = {role: f"{name}.{role}_exps" for role in shapes}  # GGUF keeps a bank of each
    if "gate" not in shapes and names["up"] not in reader:  # transformers too, without a gate
        names = {role: f"{name}.{part}" for role, part in zip(shapes, parts, strict=True)}
    if names["up"] in reader:
        for role, shape in shapes.items():
            reader.piece(names[role], (count, *shape))
        return {
            role: [reader.piece(names[role], (count, *shape), expert=e) for e in range(count)]
            for role, shape in shapes.items()
        }
    if f"{name}.{layout.both}" in reader:
        return fused_pieces(reader, name, count, inner, hidden, layout)
    if layout.stacked:
        places = [slice(e * inner, (e + 1) * inner) for e in range(count)]
        stored = (count * inner, hidden)
        return {
            role: [
                reader.piece(f"{name}.{part}", stored, rows=rows, transposed=role == "down")
                for rows in places
            ]
            for role, part in zip(shapes, parts, strict=True)
        }
    return {
        role: [
            reader.piece(f"{name}.{layout.each.format(e)}.{part}.weight", shapes[role])
            for e in range(count)
        ]
        for role, part in zip(shapes, parts, strict=True)
    }


def _fused_banks(reader: "Reader", name: str, count: int, inner: int, hidden: int) -> Pieces:
    both, down = (count, 2 * inner, hidden), (count, hidden, inner)
    halves = {"gate": slice(0, inner), "up": slice(inner, 2 * inner)}
    pieces: Pieces = {
        role: [
            reader.piece(f"{name}.gate_up_exps", both, expert=e, rows=half) for e in range(count)
        ]
        for role, half in halves.items()
    }
    pieces["down"] = [reader.piece(f"{name}.down_exps", down, expert=e) for e in range(count)]
    return pieces


def fused_pieces(
    reader: "Reader", name: str, count: int | None, inner: int, hidden: int, layout: Layout
) -> Pieces:
    """The pieces of banks; with a `count` of None, of matrices [2F, H] and [H, F] without E."""
    both, down = f"{name}.{layout.both}", f"{name}.{layout.down}"
    wide, tall = (2 * inner, hidden), (hidden, inner)
    if layout.transposed:
        wide, tall = (hidden, 2 * inner), (inner, hidden)
    bank = () if count is None else (count,)
    more = () if count is None else (count + layout.spare,)
    pieces: Pieces = {"gate": [], "up": [], "down": []}
    for expert in [None] if count is None else range(count):
        for role, half in zip(("gate", "up"), layout.halves(inner), strict=True):
            rows, cols = (ALL, half) if layout.transposed else (half, ALL)
            pieces[role].append(
                reader.piece(
                    both,
                    (*more, *wide),
                    expert=expert,
                    rows=rows,
                    cols=cols,
                    transposed=layout.transposed,
                )
            )
        pieces["down"].append(
            reader.piece(down, (*bank, *tall), expert=expert, transposed=layout.transposed)
        )
    return pieces


def expert_biases(
    reader: "Reader", name: str, count: int, inner: int, hidden: int, layout: Layout
) -> dict[str, npt.NDArray[np.float32]]:
    """`gate_bias`, `up_bias` [E, F] and `down_bias` [E, H]."""
    if f"{name}.gate_exps_bias" in reader:
        shapes = {"gate": inner, "up": inner, "down": hidden}
        return {
            f"{role}_bias": reader.tensor(f"{name}.{role}_exps_bias", count, size)
            for role, size in shapes.items()
        }
    both = reader.tensor(f"{name}.{layout.both}_bias", count, 2 * inner)
    gate, up = (np.ascontiguousarray(both[:, half]) for half in layout.halves(inner))
    down = reader.tensor(f"{name}.{layout.down}_bias", count, hidden)
    return {"gate_bias": gate, "up_bias": up, "down_bias": down}
