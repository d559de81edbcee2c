"""Grouped-query attention that reads only the blocks of keys which an indexer chooses.

MiniMax-M3 (2026): beside its keys and values a token leaves an index key. A query's index heads,
one for each kv head, score the keys before it; a block of keys counts as its best one, and the
query attends to the `top_blocks` best blocks, the nearest `local_blocks` always among them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import ops
from .attention import Attention
from .batch import Batch
from .linear import Linear
from .norm import Norm
from .types import Floats, Weights


@dataclass(frozen=True, slots=True)
class BlockIndexer:
    """`q` gives [groups * D], `k` [D]; their norms act on each head, before the rotation."""

    q: Linear
    k: Linear
    q_norm: Norm
    k_norm: Norm
    block: int
    top_blocks: int
    local_blocks: int

    def blocks(self, query: Floats, keys: Floats) -> list[npt.NDArray[np.int64]]:
        """For each of the query's heads [h, D] the numbers of the blocks of `keys` [S, D] that it
        reads, ascending; the query stands at the last key."""
        count = -(-len(keys) // self.block)
        scores = np.full((len(query), count * self.block), -np.inf, np.float32)
        for head, vector in enumerate(query):
            # Not a matrix product: the order of its sums may depend on how many keys there are.
            scores[head, : len(keys)] = (keys * vector).sum(axis=1)
        best = scores.reshape(len(query), count, self.block).max(axis=2)
        best[:, max(count - self.local_blocks, 0) :] = np.inf
        order = np.argsort(-best, axis=1, kind="stable")[:, : self.top_blocks]
        return [np.sort(row) for row in order]

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("q", "k", "q_norm", "k_norm"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight


class BlockSparseAttention(Attention):
    """`Attention` whose queries read blocks by `indexer`, once there are more than they may."""

    __slots__ = ("index_dim", "indexer")

    def __init__(
        self, q: Linear, k: Linear, v: Linear, o: Linear, *, indexer: BlockIndexer, **options: Any
    ) -> None:
        super().__init__(q, k, v, o, **options)
        self.indexer = indexer
        self.index_dim = indexer.k.rows
        if indexer.q.rows != self.kv_heads * self.index_dim:
            raise ValueError(
                f"[BlockSparseAttention] the indexer's q gives {indexer.q.rows}; a head of "
                f"{self.index_dim} for each of {self.kv_heads} kv heads is required"
            )

    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a token leaves in a `KVCache`: keys, values and an index key."""
        return (*super().cache_rows, (self.index_dim,))

    def _attend(
        self, x: Floats, q: Floats, k: Floats, v: Floats, batch: Batch, layer: int
    ) -> Floats:
        index = self.indexer
        index_q = index.q_norm(index.q(x).reshape(len(x), self.kv_heads, self.index_dim))
        index_k = index.k_norm(index.k(x).reshape(len(x), 1, self.index_dim))
        index_q, index_k = self._rotate(index_q, index_k, batch)
        out = np.empty((len(x), self.heads, self.v_head_dim), np.float32)
        # A query that may read all blocks before it reads them as usual: decided by its position,
        # so that a prompt may come in pieces.
        dense = index.block * index.top_blocks
        for rows, cache, start in zip(batch.rows, batch.sequences, batch.starts, strict=True):
            keys, values, index_keys = cache.append(layer, k[rows], v[rows], index_k[rows, 0])
            stop = min(rows.stop, rows.start + max(dense - start, 0))
            if stop > rows.start:
                seen = start + stop - rows.start
                out[rows.start : stop] = ops.attention(
                    q[rows.start : stop], keys[:seen], values[:seen], scale=self.scale
                )
            for row in range(stop, rows.stop):
                seen = start + row - rows.start + 1
                known = np.asarray(index_keys[:seen], np.float32)
                blocks = index.blocks(index_q[row], known)
                out[row] = self._read(q[row], keys[:seen], values[:seen], blocks)
        return out

    def _read(
        self,
        query: Floats,
        keys: npt.NDArray[Any],
        values: npt.NDArray[Any],
        blocks: list[npt.NDArray[np.int64]],
    ) -> Floats:
        """One query [heads, D] over the blocks of each kv head: [heads, V]."""
        places = np.arange(self.indexer.block)
        heads = []
        for group, chosen in enumerate(blocks):
            at = (chosen[:, None] * self.indexer.block + places).ravel()
            at = at[at < len(keys)]
            mine = query.reshape(self.kv_heads, -1, self.head_dim)[group]
            shared = slice(group, group + 1)
            heads.append(
                ops.attention(
                    mine[None],
                    keys[at, shared],
                    values[at, shared],
                    scale=self.scale,
                    causal=False,
                )[0]
            )
        return np.concatenate(heads)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        yield from super().weights()
        for name, kind, weight in self.indexer.weights():
            yield f"indexer.{name}", kind, weight
