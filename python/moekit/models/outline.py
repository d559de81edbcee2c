"""A model whose weights are still to come: built as from a checkpoint, with nothing in it."""

from ..checkpoint import Piece
from ..ops import PackedWeight
from .reader import Placed, Reader


class OutlineReader(Reader):
    """Hands out parts of the right shapes; packed weights have memory that nobody touches."""

    def fill(
        self, weight: PackedWeight, slot: int, piece: Piece, bank: str = "", role: str = ""
    ) -> None:
        """Note where the piece belongs, and leave the memory as it is."""
        self.placed.append(Placed(piece, weight, slot, bank, role))
