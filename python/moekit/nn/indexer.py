"""DeepSeek's lightning indexer: small heads that choose the tokens which attention may read.

DeepSeek-V3.2-Exp (2025), section 2. Beside what attention caches, a token leaves a key of D
numbers; a query's heads score the keys before it, and the `top_k` with the largest sums are
attended to.
"""

import numpy as np

from .. import ops
from .linear import Linear
from .norm import Norm
from .types import Floats, Ids, Weights


class Indexer:
    """Sizes: heads h, key size D. `q` [h * D, Lq] reads the compressed query, `k` [D, H] and
    `head_weights` [h, H] the layer's input; `k_norm` acts on the keys. The first dimensions of
    queries and keys are rotated, in halves or `interleaved` pairs.
    """

    __slots__ = ("dim", "head_weights", "heads", "interleaved", "k", "k_norm", "q", "top_k")

    def __init__(
        self,
        q: Linear,
        k: Linear,
        k_norm: Norm,
        head_weights: Linear,
        *,
        top_k: int,
        interleaved: bool = False,
    ) -> None:
        self.heads, self.dim = head_weights.rows, k.rows
        if q.rows != self.heads * self.dim:
            raise ValueError(
                f"[Indexer] q gives {q.rows}; {self.heads} heads of {self.dim} are required"
            )
        self.q, self.k, self.k_norm, self.head_weights = q, k, k_norm, head_weights
        self.top_k = top_k
        self.interleaved = interleaved

    def keys(self, x: Floats, angles: tuple[Floats, Floats]) -> Floats:
        """What the tokens `x` [T, H] leave in the cache: [T, D]."""
        return self._rotated(self.k_norm(self.k(x)), angles)

    def queries(self, hidden: Floats, angles: tuple[Floats, Floats]) -> Floats:
        """[T, h, D] of compressed queries [T, Lq]."""
        return self._rotated(self.q(hidden).reshape(len(hidden), self.heads, self.dim), angles)

    def weigh(self, x: Floats) -> Floats:
        """How much each head counts: [T, h]."""
        return self.head_weights(x) * np.float32((self.heads * self.dim) ** -0.5)

    def select(self, queries: Floats, weights: Floats, keys: Floats) -> Ids:
        """The tokens that each of the last T queries attends to: int32 [T, top_k]."""
        return ops.select_keys(queries, weights, keys, self.top_k)

    def _rotated(self, x: Floats, angles: tuple[Floats, Floats]) -> Floats:
        rotary = 2 * angles[0].shape[1]
        return ops.rope(x, angles=angles, rotary_dim=rotary, interleaved=self.interleaved)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("q", "k", "k_norm", "head_weights"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight
