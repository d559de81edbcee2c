"""The attentions of T5's encoder and decoder: no scale, no rotation, biases by distance.

Raffel et al., arXiv 1910.10683, section 2.1. The distance from a query to a key falls into a
bucket: near ones have a bucket each, farther ones share buckets whose width grows as a logarithm.
One table of a bias for each bucket and head serves all layers.
"""

import math

import numpy as np
import numpy.typing as npt

from .. import ops
from .batch import Batch
from .linear import Linear
from .types import Floats, Weights


class RelativeBias:
    """`table` [buckets, heads]. `bidirectional`: half of the buckets are for keys behind the
    query (an encoder); else such keys are not seen. Distances of `longest` and more share one.
    """

    __slots__ = ("bidirectional", "longest", "table")

    def __init__(self, table: npt.ArrayLike, *, bidirectional: bool, longest: int = 128) -> None:
        self.table: Floats = np.ascontiguousarray(table, np.float32)
        self.bidirectional = bidirectional
        self.longest = longest
        exact = len(self.table) // (4 if bidirectional else 2)
        if self.table.ndim != 2 or exact < 1 or longest <= exact:
            raise ValueError(
                f"[RelativeBias] table has shape {self.table.shape} and longest is {longest}; "
                "[buckets, heads] with at least 2 buckets (4 in both directions), and a longest "
                "distance beyond the exact ones, are required"
            )

    def buckets(self, distances: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The bucket of each distance, key's place minus query's."""
        count = len(self.table)
        if self.bidirectional:
            count //= 2
            first = np.where(distances > 0, count, 0)
            far = np.abs(distances)
        else:
            first = np.zeros_like(distances)
            far = np.maximum(-distances, 0)
        exact = count // 2
        # In float32 and in this order, as the models were trained: a border may lie on a bucket.
        grown = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
        grown = grown / np.float32(math.log(self.longest / exact)) * np.float32(count - exact)
        late = np.minimum(exact + grown.astype(np.int64), count - 1)
        return first + np.where(far < exact, far, late)

    def of(self, first: int, queries: int, keys: int) -> Floats:
        """Biases [heads, queries, keys] of queries at places `first` and on; a view of one line."""
        distances = np.arange(keys + queries - 1) - (first + queries - 1)
        line = np.ascontiguousarray(self.table[self.buckets(distances)].T)
        return np.lib.stride_tricks.as_strided(
            line[:, queries - 1 :],
            (line.shape[0], queries, keys),
            (line.strides[0], -line.itemsize, line.itemsize),
            writeable=False,
        )

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        yield "table", "attention", self.table


class RelativeAttention:
    """Self-attention with `bias`: of a decoder if `causal`, whose keys stay in the cache, or of an
    encoder, which sees a whole sequence at once and keeps nothing. q, k, v [heads * D, H], o
    [H, heads * D]. Layers share a bias: the first one, which `owns_bias`, counts it as its own.
    """

    __slots__ = ("bias", "causal", "heads", "k", "o", "owns_bias", "q", "v")

    def __init__(
        self,
        q: Linear,
        k: Linear,
        v: Linear,
        o: Linear,
        *,
        heads: int,
        bias: RelativeBias,
        causal: bool,
        owns_bias: bool = False,
    ) -> None:
        _check_heads("RelativeAttention", q, k, v, o, heads)
        if bias.table.shape[1] != heads:
            raise ValueError(
                f"[RelativeAttention] bias is for {bias.table.shape[1]} heads; {heads} are there"
            )
        self.q, self.k, self.v, self.o = q, k, v, o
        self.heads = heads
        self.bias = bias
        self.causal = causal
        self.owns_bias = owns_bias

    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a token leaves in a `KVCache`: its keys and values in a decoder."""
        row = (self.heads, self.q.rows // self.heads)
        return (row, row) if self.causal else ()

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None:
            batch, layer = Batch.alone(x, self.cache_rows), 0
        q, k, v = (_heads_of(part(x), self.heads) for part in (self.q, self.k, self.v))
        out = np.empty_like(q)
        for n, rows in enumerate(batch.rows):
            keys, values = k[rows], v[rows]
            if self.causal:
                keys, values = batch.sequences[n].append(layer, keys, values)
            bias = self.bias.of(batch.starts[n], rows.stop - rows.start, len(keys))
            out[rows] = ops.attention(
                q[rows], keys, values, scale=1.0, causal=self.causal, bias=bias
            )
        return self.o(out.reshape(len(x), -1))

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        yield from _linear_weights(self)
        if self.owns_bias:
            for name, kind, weight in self.bias.weights():
                yield f"bias.{name}", kind, weight


class CrossAttention:
    """A decoder's attention to what the encoder has made of the source; shapes as above."""

    __slots__ = ("heads", "k", "o", "q", "scale", "v")

    def __init__(
        self, q: Linear, k: Linear, v: Linear, o: Linear, *, heads: int, scale: float = 1.0
    ) -> None:
        _check_heads("CrossAttention", q, k, v, o, heads)
        self.q, self.k, self.v, self.o = q, k, v, o
        self.heads = heads
        self.scale = scale

    def remember(self, encoded: Floats, batch: Batch, decoder: Batch, layer: int) -> None:
        """Leaves keys and values of the encoded tokens [S, H] with the decoder's sequences."""
        k, v = (_heads_of(part(encoded), self.heads) for part in (self.k, self.v))
        for rows, sequence in zip(batch.rows, decoder.sequences, strict=True):
            # Head by head, as attention reads them.
            sequence.memory[layer] = tuple(
                np.ascontiguousarray(part[rows].transpose(1, 0, 2)).transpose(1, 0, 2)
                for part in (k, v)
            )

    def __call__(self, x: Floats, batch: Batch, layer: int) -> Floats:
        q = _heads_of(self.q(x), self.heads)
        out = np.empty_like(q)
        for rows, sequence in zip(batch.rows, batch.sequences, strict=True):
            keys, values = sequence.memory[layer]
            out[rows] = ops.attention(q[rows], keys, values, scale=self.scale, causal=False)
        return self.o(out.reshape(len(x), -1))

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        yield from _linear_weights(self)


def _check_heads(owner: str, q: Linear, k: Linear, v: Linear, o: Linear, heads: int) -> None:
    sizes = q.rows, k.rows, v.rows, o.cols
    if heads < 1 or q.rows % heads or len(set(sizes)) != 1:
        raise ValueError(
            f"[{owner}] q, k, v give {sizes[:3]} and o takes {o.cols}; the same multiple of "
            f"{heads} heads is required"
        )


def _heads_of(x: Floats, heads: int) -> Floats:
    return x.reshape(len(x), heads, -1)


def _linear_weights(part: RelativeAttention | CrossAttention) -> Weights:
    for name in ("q", "k", "v", "o"):
        for inner, kind, weight in getattr(part, name).weights():
            yield f"{name}.{inner}", kind, weight
