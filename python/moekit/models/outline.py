"""A model whose weights are still to come: built as from a checkpoint, with nothing in it."""

import ml_dtypes
import numpy as np

from ..checkpoint import Piece
from ..ops import PackedWeight
from .reader import Reader
from .tensor_reader import Array, Placed


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

    def embedding(self, name: str, vocab: int, hidden: int) -> Array:
        """A table whose memory nobody touches."""
        piece = self.piece(f"{name}.weight", (vocab, hidden))
        table: Array = np.empty((vocab, hidden), ml_dtypes.bfloat16)
        self.placed.append(Placed(piece, table))
        return table

    def pack_table(self, table: Array) -> PackedWeight:
        """As `embedding`."""
        return PackedWeight.empty("int8", table.shape)
