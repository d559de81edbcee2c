"""Multi-head latent attention, absorbed: scores and sums are taken in the latent space.

DeepSeek-V2 (arXiv 2405.04434), section 2.1. Keys and values of all heads are linear functions of
one latent vector a token, k_h = W_uk,h c and v_h = W_uv,h c. Instead of expanding the cache,

    q_h · (W_uk,h c) = (W_uk,hᵀ q_h) · c        sum_j p_j (W_uv,h c_j) = W_uv,h (sum_j p_j c_j)

so the cache holds [L + R] numbers a token: the latent, and a key part of R numbers that carries the
position and is shared by all heads.
"""

import numpy as np
import numpy.typing as npt

from .. import ops
from ..ops import PackedWeight
from .batch import Batch
from .linear import Linear
from .norm import RMSNorm
from .types import Floats, Weights


class MLA:
    """Latent attention. Sizes: heads h, latent L, nope N, rope R, value V.

    `q` (or `q_a`, `q_norm`, `q_b` where queries are compressed too) gives [h * (N + R)], `kv_a`
    gives [L + R]; `kv_norm` acts on the latent part. `key_up` is packed [h, L, N] (W_uk,h
    transposed), `value_up` [h, V, L], `o` is [H, h * V]. `scale` is (N + R) ** -0.5 unless given.
    """

    __slots__ = (
        "_one_row_each",
        "frequencies",
        "heads",
        "interleaved",
        "key_up",
        "kv_a",
        "kv_norm",
        "latent",
        "nope",
        "o",
        "q",
        "q_a",
        "q_norm",
        "rope",
        "rope_factor",
        "scale",
        "value",
        "value_up",
    )

    def __init__(
        self,
        q: Linear,
        kv_a: Linear,
        kv_norm: RMSNorm,
        key_up: PackedWeight,
        value_up: PackedWeight,
        o: Linear,
        *,
        frequencies: npt.ArrayLike,
        rope_factor: float = 1.0,
        interleaved: bool = True,
        q_a: Linear | None = None,
        q_norm: RMSNorm | None = None,
        scale: float | None = None,
    ) -> None:
        self.heads, self.latent, self.nope = key_up.shape
        self.value = value_up.shape[1]
        self.rope = kv_a.rows - self.latent
        if value_up.shape != (self.heads, self.value, self.latent):
            raise ValueError(
                f"[MLA] value_up has shape {value_up.shape}; "
                f"[{self.heads}, V, {self.latent}] is required"
            )
        if self.rope < 1 or q.rows != self.heads * (self.nope + self.rope):
            raise ValueError(
                f"[MLA] q gives {q.rows} and kv_a {kv_a.rows}; {self.heads} heads of "
                f"{self.nope} + rope and a latent of {self.latent} + rope are required"
            )
        self.q, self.q_a, self.q_norm = q, q_a, q_norm
        self.kv_a, self.kv_norm, self.o = kv_a, kv_norm, o
        self.key_up, self.value_up = key_up, value_up
        self.frequencies: Floats = np.ascontiguousarray(frequencies, np.float32)
        self.rope_factor = rope_factor
        self.interleaved = interleaved
        self._one_row_each = np.arange(self.heads + 1, dtype=np.int64)
        self.scale = (self.nope + self.rope) ** -0.5 if scale is None else scale

    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a token leaves in a `KVCache`: latent and rotated key part, joined."""
        return ((self.latent + self.rope,),)

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None:
            batch, layer = Batch.alone(x, self.cache_rows), 0
        rows = len(x)
        hidden = x
        if self.q_a is not None:
            hidden = self.q_a(x)
            if self.q_norm is not None:
                hidden = self.q_norm(hidden)
        q = self.q(hidden).reshape(rows, self.heads, self.nope + self.rope)
        angles = batch.angles(self.frequencies, self.rope_factor)
        q_rope = ops.rope(q[:, :, self.nope :], angles=angles, interleaved=self.interleaved)
        q_latent = self._per_head(q[:, :, : self.nope], self.key_up)

        compressed = self.kv_a(x)
        entries = np.empty((rows, self.latent + self.rope), np.float32)
        entries[:, : self.latent] = self.kv_norm(compressed[:, : self.latent])
        k_rope = compressed[:, self.latent :]
        entries[:, self.latent :] = ops.rope(k_rope, angles=angles, interleaved=self.interleaved)

        summed = self._attend(q_latent, q_rope, entries, batch, layer)
        out = self._per_head(summed, self.value_up)
        return self.o(out.reshape(rows, self.heads * self.value))

    def _per_head(self, x: Floats, weight: PackedWeight) -> Floats:
        """x [T, h, A] times weight [h, B, A] head by head: [T, h, B], heads as experts."""
        rows = len(x)
        if rows == 1:  # one token lies head by head already
            return ops.grouped_matmul(x[0], weight, self._one_row_each)[None]
        by_head = np.ascontiguousarray(x.transpose(1, 0, 2)).reshape(-1, x.shape[2])
        y = ops.grouped_matmul(by_head, weight, self._one_row_each * rows)
        return np.ascontiguousarray(y.reshape(self.heads, rows, -1).transpose(1, 0, 2))

    def _attend(
        self, q_latent: Floats, q_rope: Floats, entries: Floats, batch: Batch, layer: int
    ) -> Floats:
        parts = []
        for rows, cache in zip(batch.rows, batch.sequences, strict=True):
            (kept,) = cache.append(layer, entries[rows])
            parts.append(ops.mla_attention(q_latent[rows], q_rope[rows], kept, scale=self.scale))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("q_a", "q_norm", "q", "kv_a", "kv_norm", "o"):
            module = getattr(self, part)
            if module is not None:
                for name, kind, weight in module.weights():
                    yield f"{part}.{name}", kind, weight
        yield "key_up", "attention", self.key_up
        yield "value_up", "attention", self.value_up
