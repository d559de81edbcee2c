"""The tokens of one forward pass, and what a model keeps of the sequences it has seen.

Sequences of any lengths are laid one after another in one stream of rows: norms, projections,
routing and experts see only rows; attention alone looks at where a sequence begins and ends.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .. import ops
from .kv_cache import KVCache
from .types import Floats, Ids, Tally

if TYPE_CHECKING:
    from ..ops import Assignment
    from ..routing import RoutingPass, Watch


class Cache:
    """The sequences that a conversation with the model continues; empty until its first use.

    Each sequence is a `KVCache` over all layers.
    """

    def __init__(self, sequences: list[KVCache] | None = None, first_request: int = 0) -> None:
        self.sequences = sequences or []
        #: The place in the caller's list that the first sequence to come has.
        self.first_request = first_request

    def __len__(self) -> int:
        return len(self.sequences)

    def __bool__(self) -> bool:  # an empty cache is a cache all the same
        return True

    def __repr__(self) -> str:
        return f"Cache(lengths={self.lengths}, {self.nbytes} bytes)"

    @property
    def lengths(self) -> list[int]:
        """Tokens held for each sequence."""
        return [sequence.length for sequence in self.sequences]

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers of all sequences."""
        return sum(sequence.nbytes for sequence in self.sequences)

    def fork(self) -> "Cache":
        """A cache that goes its own way from here: continue one prompt in several ways."""
        return Cache([sequence.fork() for sequence in self.sequences])

    def select(self, indices: Sequence[int]) -> "Cache":
        """A cache of some of the sequences, shared with this one and not copied."""
        return Cache([self.sequences[index] for index in indices])

    def truncate(self, length: int) -> None:
        """Forget all tokens of every sequence but the first `length`."""
        for sequence in self.sequences:
            sequence.truncate(length)


class Batch:
    """Rows of one pass. `rows[i]` are those of sequence i, which `sequences[i]` remembers;
    `positions` int64 [T] are the places in the sequences, `ids` int32 [T] the tokens."""

    __slots__ = (
        "_angles",
        "_states",
        "choices",
        "first_number",
        "ids",
        "layer_inputs",
        "positions",
        "routing",
        "rows",
        "selected",
        "sequences",
        "starts",
        "tally",
        "watch",
    )

    def __init__(
        self, lengths: Sequence[int], sequences: Sequence[KVCache], ids: Ids | None = None
    ) -> None:
        self.sequences = sequences
        self.routing: RoutingPass | None = None
        #: What the open blocks of the thread do with this pass.
        self.watch: Watch | None = None
        #: What the layers chose so far, by layer, where open records want to know.
        self.choices: dict[int, Assignment] | None = None
        #: What counts whom they chose, where counters are open.
        self.tally: Tally | None = None
        self.starts = [sequence.length for sequence in sequences]
        # Recurrent states cannot be cut, only kept: layers replace them and never write into them.
        self._states = [dict(sequence.state) for sequence in sequences]
        self.rows: list[slice] = []
        end = 0
        for length in lengths:
            self.rows.append(slice(end, end + length))
            end += length
        self._angles: dict[int, tuple[Floats, Floats]] = {}
        # What the last layer with an indexer has selected, by the number of the sequence.
        self.selected: dict[int, Ids] = {}
        # What the layers are given beside the stream, [T, layers, P], where there is such a thing.
        self.layer_inputs: Floats | None = None
        #: The number of its first sequence in a record that is replayed.
        self.first_number = 0
        self.ids = np.zeros(end, np.int32) if ids is None else ids
        # Decode, one token of each sequence, is the case worth a short way.
        self.positions: npt.NDArray[np.int64] = (
            np.array(self.starts, np.int64)
            if end == len(self.starts)
            else np.concatenate(
                [
                    np.arange(start, start + length, dtype=np.int64)
                    for start, length in zip(self.starts, lengths, strict=True)
                ]
            )
        )

    @classmethod
    def alone(cls, x: Floats, cache_rows: Sequence[tuple[int, ...]]) -> "Batch":
        """All rows of `x` [T, H] as one sequence from its beginning: a part used on its own."""
        return cls([len(x)], [KVCache([cache_rows])])

    def angles(self, frequencies: Floats, factor: float) -> tuple[Floats, Floats]:
        """cos and sin [T, n] at this pass's positions, made once for all layers that share
        the array `frequencies`."""
        found = self._angles.get(id(frequencies))
        if found is None:
            found = ops.rope_angles(self.positions, frequencies, factor)
            self._angles[id(frequencies)] = found
        return found

    def roll_back(self) -> None:
        """Undo what an interrupted pass has left in some layers."""
        for sequence, start, state in zip(self.sequences, self.starts, self._states, strict=True):
            sequence.state = dict(state)
            sequence.truncate(start)
