"""What a quantisation did, matrix by matrix, and which experts had too little text."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix: `expert` is its place in a bank (-1 for a weight of its own), `tokens` those it
    was calibrated with, `error` as in `rounding.Rounded`."""

    path: str
    role: str
    expert: int
    format: str
    method: str
    tokens: int
    error: float
    nbytes: int


@dataclass(slots=True)
class Notes:
    """`model.quantization` of a quantised model.

    `tokens` maps a layer to the calibration tokens that its router sent to each expert, and
    `fallbacks` lists (layer, expert, tokens) of those with too few, which were rounded by their
    weights alone; `options` are the recipe and how it was followed.
    """

    options: Mapping[str, Any]
    matrices: list[Matrix] = field(default_factory=list)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    fallbacks: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of all packed weights."""
        return sum(matrix.nbytes for matrix in self.matrices)

    def by_role(self) -> dict[str, dict[str, float]]:
        """role -> bytes, matrices, and the mean and the largest error."""
        groups: dict[str, list[Matrix]] = defaultdict(list)
        for matrix in self.matrices:
            groups[matrix.role or "other"].append(matrix)
        return {
            role: {
                "bytes": float(sum(m.nbytes for m in group)),
                "matrices": float(len(group)),
                "mean_error": float(np.mean([m.error for m in group])),
                "max_error": float(max(m.error for m in group)),
            }
            for role, group in groups.items()
        }

    def formats(self) -> dict[str, int]:
        """format -> how many matrices have it."""
        counts: dict[str, int] = defaultdict(int)
        for matrix in self.matrices:
            counts[matrix.format] += 1
        return dict(counts)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold, without the single matrices."""
        return {
            "options": dict(self.options),
            "bytes": self.nbytes,
            "formats": self.formats(),
            "roles": self.by_role(),
            "methods": self._methods(),
            "tokens": {str(layer): counts for layer, counts in self.tokens.items()},
            "fallbacks": [list(entry) for entry in self.fallbacks],
        }

    def _methods(self) -> dict[str, int]:
        counts: dict[str, int] = defaultdict(int)
        for matrix in self.matrices:
            counts[matrix.method] += 1
        return dict(counts)

    def rows(self) -> list[dict[str, Any]]:
        """Every matrix as a dictionary."""
        return [asdict(matrix) for matrix in self.matrices]

    def part(self, begin: tuple[int, int]) -> dict[str, Any]:
        """What was noted since `begin` (see `mark`), for a file."""
        matrices, fallbacks = begin
        return {
            "matrices": [list(asdict(m).values()) for m in self.matrices[matrices:]],
            "fallbacks": [list(entry) for entry in self.fallbacks[fallbacks:]],
        }

    def mark(self) -> tuple[int, int]:
        """Where the notes end now."""
        return len(self.matrices), len(self.fallbacks)

    def take_over(self, part: Mapping[str, Sequence[Any]]) -> None:
        """Notes of an earlier run."""
        self.matrices += [Matrix(*row) for row in part["matrices"]]
        self.fallbacks += [(int(a), int(b), int(c)) for a, b, c in part["fallbacks"]]
