"""A model whose weights are still to come: built as from a checkpoint, with nothing in it."""

import numpy as np

from ..checkpoint import Piece
from ..ops import PackedWeight
from .reader import Array, Placed, Reader


class OutlineReader(Reader):
    """Hands out parts of the right shapes; packed weights have memory that nobody touches."""

    def fill(
        self, weight: PackedWeight, slot: int, piece: Piece, bank: str = "", role: str = ""
    ) -> None:
        """Note where the piece belongs, and leave the memory as it is."""
        self.placed.append(Placed(piece, weight, slot, bank, role))

    def tensor(self, name: str, *shape: int) -> Array:
        """An array of its own: a part keeps this very one, by which it is found again."""
        piece = self.piece(name, shape)
        value = np.array(self._weights[piece.name], np.float32)
        self.placed.append(Placed(piece, value))
        return value
