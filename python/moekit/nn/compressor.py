"""DeepSeek-V4's memory of what is far away: windows of tokens pooled into one entry each.

DeepSeek-V4 (2026), sections 2.3.1 and 2.3.2. Each token gives values and gates; a softmax of the
gates over a window of m tokens, feature by feature, pools its values into an entry, which is
normalised and rotated by the window's first position.
"""

from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import ops
from .batch import Batch
from .kv_cache import KVCache
from .linear import Linear
from .norm import Norm
from .types import Floats, Weights

_FIRST = 16  # entries of a buffer at first
_NOTHING = np.zeros(1, np.int64)


class Compressor:
    """Entries of D numbers. `values` and `gates` are [D, H], or [2 D, H] where windows overlap:
    then the first half of a window's features counts in the entry of the next one (CSA). `bias`
    [m, D or 2 D] is added to the gates by the place in the window, which gives m. The last 2 n
    dimensions of an entry are rotated by `frequencies` [n].
    """

    __slots__ = ("bias", "dim", "frequencies", "gates", "norm", "overlap", "rope_factor", "values")

    def __init__(
        self,
        values: Linear,
        gates: Linear,
        bias: npt.ArrayLike,
        norm: Norm,
        *,
        frequencies: Floats,
        rope_factor: float = 1.0,
        overlap: bool = False,
    ) -> None:
        self.values, self.gates, self.norm = values, gates, norm
        self.bias: Floats = np.ascontiguousarray(bias, np.float32)
        self.overlap = overlap
        self.dim = values.rows // (2 if overlap else 1)
        self.frequencies = frequencies
        self.rope_factor = rope_factor
        if gates.rows != values.rows or self.bias.ndim != 2 or self.bias.shape[1] != values.rows:
            raise ValueError(
                f"[Compressor] values, gates and bias have {values.rows}, {gates.rows} and "
                f"{self.bias.shape[-1]} features; the same number is required"
            )

    @property
    def window(self) -> int:
        """m: tokens of an entry."""
        return len(self.bias)

    def __call__(self, x: Floats, batch: Batch, key: object) -> list[Floats]:
        """For each sequence all its entries [n, D] after the tokens `x` [T, H], kept as `key`.

        The state is how many entries count, the tokens that wait for their window to fill, and
        the window before; the entries themselves lie in the cache's memory.
        """
        values = self.values(x)
        gates = self.gates(x) + self.bias[batch.positions % self.window]
        entries = []
        for rows, cache in zip(batch.rows, batch.sequences, strict=True):
            kept = [array for array in cache.recall(key, 5) if array is not None]
            count, *rest = kept or self._beginning()
            new, rest = self._pooled(values[rows], gates[rows], rest, int(count[0]))
            entries.append(_extended(cache, key, int(count[0]), new))
            cache.remember(key, rows.stop - rows.start, count + len(new), *rest)
        return entries

    def _beginning(self) -> list[Any]:
        """No entries, no tokens that wait for their window to fill, and no window before."""
        shape = (self.window if self.overlap else 0, self.dim)
        return [
            np.zeros(1, np.int64),
            *(np.zeros((0, self.values.rows), np.float32) for _ in range(2)),
            np.zeros(shape, np.float32),
            np.full(shape, -np.inf, np.float32),
        ]

    def _pooled(
        self, values: Floats, gates: Floats, rest: list[Floats], first: int
    ) -> tuple[Floats, list[Floats]]:
        """The entries of the windows that are complete now, and what is left over."""
        values, gates = np.concatenate([rest[0], values]), np.concatenate([rest[1], gates])
        count = len(values) // self.window
        end = count * self.window
        left = [values[end:].copy(), gates[end:].copy(), *rest[2:]]
        if not count:
            return np.zeros((0, self.dim), np.float32), left
        shape = (count, self.window, self.values.rows)
        values, gates = values[:end].reshape(shape), gates[:end].reshape(shape)
        if self.overlap:
            left[2:] = [values[-1, :, : self.dim].copy(), gates[-1, :, : self.dim].copy()]
            values = self._with_previous(values, rest[2])
            gates = self._with_previous(gates, rest[3])
        positions = np.arange(first, first + count) * self.window
        angles = ops.rope_angles(positions, self.frequencies, self.rope_factor)
        rotary = 2 * len(self.frequencies)
        entries = self.norm(ops.pool_windows(values, gates))
        entries = ops.rope(
            entries, angles=angles, interleaved=True, placement="last", rotary_dim=rotary
        )
        return entries, left

    def _with_previous(self, x: Floats, before: Floats) -> Floats:
        """[n, m, 2 D] as [n, 2 m, D]: the previous window's first half, this one's second."""
        both = np.empty((len(x), 2 * self.window, self.dim), np.float32)
        both[:, self.window :] = x[:, :, self.dim :]
        both[0, : self.window] = before
        both[1:, : self.window] = x[:-1, :, : self.dim]
        return both

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("values", "gates", "norm"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight
        yield "bias", "attention", self.bias


_extending = Lock()


def _extended(cache: KVCache, key: object, count: int, new: Floats) -> Floats:
    """The first `count` entries and the new ones, in a buffer that grows geometrically.

    Forks share it. Who comes first writes behind what counts, and who finds that place taken, by
    a fork or by a pass that was undone, moves out.
    """
    end = count + len(new)
    with _extending:
        buffer, filled = cache.memory.get(key, (np.zeros((0, new.shape[1]), np.float32), _NOTHING))
        if end > len(buffer) or (len(new) and filled[0] != count):
            bigger = np.empty((max(end, _FIRST, count + count // 2), new.shape[1]), np.float32)
            bigger[:count] = buffer[:count]
            buffer, filled = bigger, np.array([count])
        if len(new):
            buffer[count:end] = new
            filled[0] = end
            cache.memory[key] = buffer, filled
    entries: Floats = buffer[:end]
    return entries
