"""One matrix inside a stored weight: what a model's part takes of a tensor, and where it lies."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .source import Array

ALL = slice(None)


def span_of(taken: slice, size: int) -> tuple[int, int, slice]:
    """(first, last, step) of an axis: what lies in `first:last` and how it is taken out of that."""
    places = range(size)[taken]
    if not places:
        return 0, 0, ALL
    return places.start, places[-1] + 1, slice(None, None, places.step)


@dataclass(frozen=True, slots=True)
class Piece:
    """The matrix `stored[expert][rows, cols]`, its axes swapped where `transposed`.

    `expert` is the index into a bank [E, ...], None for a matrix of its own; `rows` and `cols`
    are slices of the stored matrix, with a step where gate and up alternate.
    """

    name: str
    expert: int | None = None
    rows: slice = field(default_factory=lambda: ALL)
    cols: slice = field(default_factory=lambda: ALL)
    transposed: bool = False

    @property
    def whole(self) -> bool:
        """True where the stored matrix is wanted as it is."""
        return self.rows == ALL and self.cols == ALL and not self.transposed

    def part(self, first: int, last: int, stored: Sequence[int]) -> "Piece":
        """Rows `first:last` of this piece of a stored matrix [N, K], as a piece of their own."""
        axis, taken = (1, self.cols) if self.transposed else (0, self.rows)
        places = range(stored[axis])[taken][first:last]
        run = slice(places.start, places.stop, places.step)
        return replace(self, cols=run) if self.transposed else replace(self, rows=run)

    def of(self, matrix: Array) -> Array:
        """The piece as a view of the stored matrix [N, K]."""
        view: Array = matrix[self.rows, self.cols]
        return view.T if self.transposed else view

    def taken_from(self, matrix: Array) -> Array:
        """The piece as an array of its own, C-contiguous."""
        return np.ascontiguousarray(self.of(matrix))
