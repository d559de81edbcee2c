"""One matrix inside a stored weight: what a model's part takes of a tensor, and where it lies."""

from dataclasses import dataclass, field

import numpy as np

from .source import Array

ALL = slice(None)


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

    @property
    def is_row_range(self) -> bool:
        """True for neighbouring rows of a matrix that is no bank."""
        given = self.rows.start is not None and self.rows.stop is not None
        return self.expert is None and given and self.rows.step in (None, 1)

    def of(self, matrix: Array) -> Array:
        """The piece as a view of the stored matrix [N, K]."""
        view: Array = matrix[self.rows, self.cols]
        return view.T if self.transposed else view

    def taken_from(self, matrix: Array) -> Array:
        """The piece as an array of its own, C-contiguous."""
        return np.ascontiguousarray(self.of(matrix))
