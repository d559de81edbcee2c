"""Grouped-query attention (Ainslie et al., arXiv 2305.13245) over a cache of keys and values."""

import numpy as np
import numpy.typing as npt

from .. import ops
from .batch import Batch
from .linear import Linear
from .norm import RMSNorm
from .types import Floats, Weights


class Attention:
    """`heads` queries share `kv_heads` keys and values; position by rotation of q and k.

    Linear layers: q [heads * head_dim, H], k and v [kv_heads * head_dim, H], o [H, heads *
    head_dim]. `frequencies` [rotary_dim / 2] are those of `ops.rope_frequencies`, None for no
    rotation. `q_norm` and `k_norm` act on each head before the rotation. A query sees the last
    `window` keys, itself included, or all of them. `scale` is head_dim ** -0.5 unless given.
    """

    __slots__ = (
        "frequencies",
        "head_dim",
        "heads",
        "interleaved",
        "k",
        "k_norm",
        "kv_heads",
        "o",
        "q",
        "q_norm",
        "rope_factor",
        "scale",
        "v",
        "window",
    )

    def __init__(
        self,
        q: Linear,
        k: Linear,
        v: Linear,
        o: Linear,
        *,
        heads: int,
        kv_heads: int,
        frequencies: npt.ArrayLike | None = None,
        rope_factor: float = 1.0,
        interleaved: bool = False,
        q_norm: RMSNorm | None = None,
        k_norm: RMSNorm | None = None,
        window: int | None = None,
        scale: float | None = None,
    ) -> None:
        if heads < 1 or kv_heads < 1 or heads % kv_heads:
            raise ValueError(
                f"[Attention] {heads} heads share {kv_heads}; a positive multiple is required"
            )
        self.head_dim = q.rows // heads
        self.heads = heads
        self.kv_heads = kv_heads
        if q.rows % heads or k.rows != kv_heads * self.head_dim or v.rows != k.rows:
            raise ValueError(
                f"[Attention] q, k, v have {q.rows}, {k.rows}, {v.rows} rows; they do not fit "
                f"{heads} and {kv_heads} heads"
            )
        self.q, self.k, self.v, self.o = q, k, v, o
        self.q_norm, self.k_norm = q_norm, k_norm
        self.frequencies: Floats | None = (
            None if frequencies is None else np.ascontiguousarray(frequencies, np.float32)
        )
        self.rope_factor = rope_factor
        self.interleaved = interleaved
        self.window = window
        self.scale = self.head_dim**-0.5 if scale is None else scale

    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a token leaves in a `KVCache`: its keys and its values."""
        return (self.kv_heads, self.head_dim), (self.kv_heads, self.head_dim)

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None:
            batch, layer = Batch.alone(x, self.cache_rows), 0
        rows = len(x)
        q = self.q(x).reshape(rows, self.heads, self.head_dim)
        k = self.k(x).reshape(rows, self.kv_heads, self.head_dim)
        v = self.v(x).reshape(rows, self.kv_heads, self.head_dim)
        if self.q_norm is not None:
            q = self.q_norm(q)
        if self.k_norm is not None:
            k = self.k_norm(k)
        if self.frequencies is not None:
            angles = batch.angles(self.frequencies, self.rope_factor)
            q = ops.rope(q, angles=angles, interleaved=self.interleaved)
            k = ops.rope(k, angles=angles, interleaved=self.interleaved)
        out = self._attend(q, k, v, batch, layer)
        return self.o(out.reshape(rows, self.heads * self.head_dim))

    def _attend(self, q: Floats, k: Floats, v: Floats, batch: Batch, layer: int) -> Floats:
        parts = []
        for rows, cache in zip(batch.rows, batch.sequences, strict=True):
            keys, values = cache.append(layer, k[rows], v[rows])
            parts.append(ops.attention(q[rows], keys, values, scale=self.scale, window=self.window))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("q", "k", "v", "o", "q_norm", "k_norm"):
            module = getattr(self, part)
            if module is not None:
                for name, kind, weight in module.weights():
                    yield f"{part}.{name}", kind, weight
