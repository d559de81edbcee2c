"""DeepSeek-V4's attention: one head of keys that are values too, a window and compressed entries.

DeepSeek-V4 (2026), section 2.3. A query reads the last tokens and, in most layers, entries that
stand for windows of tokens further back: all of them (HCA), or those that an indexer selects (CSA).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .. import ops
from ..ops import PackedWeight
from .batch import Batch
from .compressor import Compressor
from .linear import Linear
from .norm import Norm
from .types import Floats, Ids, Weights


@dataclass(frozen=True, slots=True)
class EntrySelector:
    """Chooses `top_k` entries for a query: small heads [h, D] score entries of their own.

    `q` [h * D, Lq] reads the compressed query, `head_weights` [h, H] the layer's input.
    """

    q: Linear
    head_weights: Linear
    entries: Compressor
    top_k: int

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("q", "head_weights", "entries"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight


class CompressedAttention:
    """Sizes: heads h, head D, query latent Lq, groups g of heads, their latents R.

    `q_a` [Lq, H], `q_norm`, `q` [h * D, Lq]; each head is normalised without a weight (`eps`).
    `kv` [D, H] and `kv_norm` give what a token leaves. `o_a` is packed [g, R, h * D / g], `o` is
    [H, g * R]. The last 2 n dimensions are rotated by `frequencies` [n], and the output is rotated
    back, since the values carry the rotation as well. `sinks` [h] are scores without a value.
    """

    __slots__ = (
        "compressor",
        "eps",
        "frequencies",
        "heads",
        "kv",
        "kv_norm",
        "o",
        "o_a",
        "q",
        "q_a",
        "q_norm",
        "rope_factor",
        "selector",
        "sinks",
        "window",
    )

    def __init__(
        self,
        q_a: Linear,
        q_norm: Norm,
        q: Linear,
        kv: Linear,
        kv_norm: Norm,
        o_a: PackedWeight,
        o: Linear,
        *,
        heads: int,
        sinks: npt.ArrayLike,
        window: int,
        frequencies: Floats,
        rope_factor: float = 1.0,
        eps: float = 1e-6,
        compressor: Compressor | None = None,
        selector: EntrySelector | None = None,
    ) -> None:
        if q.rows != heads * kv.rows or heads % o_a.shape[0]:
            raise ValueError(
                f"[CompressedAttention] q and kv give {q.rows} and {kv.rows}; {heads} heads in "
                f"{o_a.shape[0]} equal groups are required"
            )
        if selector is not None and compressor is None:
            raise ValueError("[CompressedAttention] a selector was given; it needs a compressor")
        self.q_a, self.q_norm, self.q = q_a, q_norm, q
        self.kv, self.kv_norm, self.o_a, self.o = kv, kv_norm, o_a, o
        self.heads = heads
        self.sinks: Floats = np.ascontiguousarray(sinks, np.float32)
        self.window = window
        self.frequencies = frequencies
        self.rope_factor = rope_factor
        self.eps = eps
        self.compressor = compressor
        self.selector = selector

    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]:
        """No rows: the tokens of the window, and compressed entries, are states of the cache."""
        return ()

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None:
            batch, layer = Batch.alone(x, self.cache_rows), 0
        rows, dim = len(x), self.kv.rows
        cos, sin = batch.angles(self.frequencies, self.rope_factor)
        latent = self.q_norm(self.q_a(x))
        q = ops.rms_norm(self.q(latent).reshape(rows, self.heads, dim), None, self.eps)
        q = self._rotated(q, (cos, sin))
        kv = self._rotated(self.kv_norm(self.kv(x)), (cos, sin))
        out = self._attend(q, kv, x, latent, batch, layer)
        out = self._rotated(out, (cos, -sin)).reshape(rows, -1)
        return self.o(self._per_group(out))

    def _rotated(self, x: Floats, angles: tuple[Floats, Floats]) -> Floats:
        rotary = 2 * len(self.frequencies)
        return ops.rope(x, angles=angles, interleaved=True, placement="last", rotary_dim=rotary)

    def _per_group(self, x: Floats) -> Floats:
        """[T, h * D] through each group's matrix: [T, g * R], groups as experts."""
        groups, rows = self.o_a.shape[0], len(x)
        by_group = x.reshape(rows, groups, -1).transpose(1, 0, 2)
        flat = np.ascontiguousarray(by_group).reshape(groups * rows, -1)
        y = ops.grouped_matmul(flat, self.o_a, np.arange(groups + 1, dtype=np.int64) * rows)
        return np.ascontiguousarray(y.reshape(groups, rows, -1).transpose(1, 0, 2)).reshape(
            rows, -1
        )

    def _attend(
        self, q: Floats, kv: Floats, x: Floats, latent: Floats, batch: Batch, layer: int
    ) -> Floats:
        scale = self.kv.rows**-0.5
        entries = None
        if self.compressor is not None:
            entries = self.compressor(x, batch, (layer, "entries"))
        chosen = self._select(x, latent, batch, layer)
        parts = []
        for n, rows in enumerate(batch.rows):
            recent, first = self._window(batch, n, kv[rows], layer)
            positions = batch.positions[rows]
            # The window's tokens, then entries, which are counted on behind them.
            width = min(self.window, int(positions[-1]) + 1)
            seen = positions[:, None] - np.arange(width - 1, -1, -1)
            selected = [np.where(seen < 0, -1, seen - first)]
            sources = [recent]
            if entries is not None:
                far = self._visible(positions, len(entries[n])) if chosen is None else chosen[n]
                selected.append(np.where(far < 0, -1, far + len(recent)))
                sources.append(entries[n])
            both = np.concatenate(selected, axis=1).astype(np.int32)
            parts.append(
                ops.sparse_attention(q[rows], sources, both, scale=scale, sinks=self.sinks)
            )
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _window(self, batch: Batch, sequence: int, new: Floats, layer: int) -> tuple[Floats, int]:
        """The tokens that the new ones may see, themselves included, and the first one's place."""
        cache = batch.sequences[sequence]
        (kept,) = cache.recall((layer, "window"), 1)
        rows = new if kept is None else np.concatenate([kept, new])
        last = rows[max(len(rows) - self.window + 1, 0) :].copy()
        cache.remember((layer, "window"), len(new), last)
        return rows, batch.starts[sequence] + len(new) - len(rows)

    def _visible(self, positions: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
        """[T, n]: the entries of windows that end at a token or before it, -1 for later ones."""
        assert self.compressor is not None
        every = np.arange(count)
        complete = (positions[:, None] + 1) // self.compressor.window
        return np.where(every < complete, every, -1)

    def _select(self, x: Floats, latent: Floats, batch: Batch, layer: int) -> list[Ids] | None:
        """The selector's choice for each sequence, int32 [T, top_k]."""
        chooser = self.selector
        if chooser is None:
            return None
        heads, dim = chooser.head_weights.rows, chooser.entries.dim
        keys = chooser.entries(x, batch, (layer, "index"))
        angles = batch.angles(chooser.entries.frequencies, chooser.entries.rope_factor)
        queries = self._rotated(chooser.q(latent).reshape(len(x), heads, dim), angles)
        weights = chooser.head_weights(x) * np.float32((heads * dim) ** -0.5)
        complete = (batch.positions + 1) // chooser.entries.window
        return [
            ops.select_keys(
                queries[rows],
                weights[rows],
                keys[n],
                min(chooser.top_k, max(len(keys[n]), 1)),
                visible=complete[rows],
            )
            for n, rows in enumerate(batch.rows)
        ]

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("q_a", "q_norm", "q", "kv", "kv_norm", "compressor", "selector", "o"):
            module = getattr(self, part)
            if module is not None:
                for name, kind, weight in module.weights():
                    yield f"{part}.{name}", kind, weight
        yield "o_a", "attention", self.o_a
        yield "sinks", "attention", self.sinks
