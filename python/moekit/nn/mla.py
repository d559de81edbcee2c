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
from ..ops.watched import Watched
from .attention import LongContext, QueryTemperature
from .batch import Batch
from .gates import sigmoid
from .indexer import Indexer
from .linear import Linear, together
from .norm import Norm
from .types import Floats, Weights


class MLA(Watched):
    """Latent attention. Sizes: heads h, latent L, nope N, rope R, value V.

    `q` (or `q_a`, `q_norm`, `q_b` where queries are compressed too) gives [h * (N + R)], `kv_a`
    gives [L + R]; `kv_norm` acts on the latent part. `key_up` is packed [h, L, N] (W_uk,h
    transposed), `value_up` [h, V, L], `o` is [H, h * V]. `scale` is (N + R) ** -0.5 unless given.
    `frequencies` [R / 2] rotate the R part; None leaves it as it is (Kimi-Linear), and `long` are
    others for long sequences. `temperature`
    scales queries by their position. `gate` [h, H]: what a head gives, times a sigmoid (Ling 3).

    With an `indexer` a query reads the `top_k` tokens that this one selects, as soon as there are
    more; with `shares_selection` those of the last indexer before this layer (GLM-5).
    """

    __slots__ = (
        "_one_row_each",
        "first_stream",
        "frequencies",
        "gate",
        "heads",
        "indexer",
        "interleaved",
        "key_up",
        "kv_a",
        "kv_norm",
        "latent",
        "long",
        "nope",
        "o",
        "q",
        "q_a",
        "q_norm",
        "rope",
        "rope_factor",
        "scale",
        "selected",
        "temperature",
        "value",
        "value_up",
    )

    def __init__(
        self,
        q: Linear,
        kv_a: Linear,
        kv_norm: Norm,
        key_up: PackedWeight,
        value_up: PackedWeight,
        o: Linear,
        *,
        frequencies: npt.ArrayLike | None,
        rope_factor: float = 1.0,
        long: LongContext | None = None,
        interleaved: bool = True,
        q_a: Linear | None = None,
        q_norm: Norm | None = None,
        scale: float | None = None,
        temperature: QueryTemperature | None = None,
        indexer: Indexer | None = None,
        shares_selection: int | None = None,
        gate: Linear | None = None,
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
        self.frequencies: Floats | None = (
            None if frequencies is None else np.ascontiguousarray(frequencies, np.float32)
        )
        self.rope_factor = rope_factor
        self.long = long
        self.interleaved = interleaved
        #: Its place among the rows that a token leaves in this layer of the cache.
        self.first_stream = 0
        self._one_row_each = np.arange(self.heads + 1, dtype=np.int64)
        self.scale = (self.nope + self.rope) ** -0.5 if scale is None else scale
        self.temperature = temperature
        self.gate = gate
        if gate is not None and gate.rows != self.heads:
            raise ValueError(f"[MLA] gate has {gate.rows} rows; {self.heads} are required")
        self.indexer = indexer
        # How many tokens a query reads where they are selected.
        self.selected = shares_selection if indexer is None else indexer.top_k
        if indexer is not None and (q_a is None or frequencies is None):
            raise ValueError("[MLA] an indexer was given; q_a and frequencies are required with it")

    @property
    def is_plain(self) -> bool:
        """Is it projections, norms, rotation, attention to every token and nothing else?"""
        return (
            self.temperature is None
            and self.long is None
            and self.gate is None
            and self.indexer is None
            and self.selected is None
            and self.first_stream == 0
            and (self.q_a is not None or self.q_norm is None)
        )

    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a token leaves in a `KVCache`: latent and rotated key part, joined, and
        the indexer's key."""
        latent = (self.latent + self.rope,)
        return (latent,) if self.indexer is None else (latent, (self.indexer.dim,))

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None:
            batch, layer = Batch.alone(x, self.cache_rows), 0
        rows = len(x)
        first, compressed = together((self.q if self.q_a is None else self.q_a, self.kv_a), x)
        hidden, q = x, first
        if self.q_a is not None:
            hidden = first if self.q_norm is None else self.q_norm(first)
            q = self.q(hidden)
        q = q.reshape(rows, self.heads, self.nope + self.rope)
        if self.temperature is not None:
            q = q * self.temperature(batch.positions)[:, None, None]
        q_rope, k_rope = q[:, :, self.nope :], compressed[:, self.latent :]
        entries = np.empty((rows, self.latent + self.rope), np.float32)
        entries[:, : self.latent] = self.kv_norm(compressed[:, : self.latent])
        index: list[Floats] = []
        if self.frequencies is not None:
            angles = batch.angles(self.frequencies, self.rope_factor)
            if self.long is not None:
                angles = self.long.angles(batch, angles)
            q_rope = ops.rope(q_rope, angles=angles, interleaved=self.interleaved)
            k_rope = ops.rope(k_rope, angles=angles, interleaved=self.interleaved)
            if self.indexer is not None:
                index = [
                    self.indexer.keys(x, angles),
                    self.indexer.queries(hidden, angles),
                    self.indexer.weigh(x),
                ]
        entries[:, self.latent :] = k_rope

        q_latent = self._per_head(q[:, :, : self.nope], self.key_up)
        parts = [
            self._attend(
                q_latent[seen],
                q_rope[seen],
                entries[seen],
                [a[seen] for a in index],
                batch,
                n,
                layer,
            )
            for n, seen in enumerate(batch.rows)
        ]
        out = self._per_head(parts[0] if len(parts) == 1 else np.concatenate(parts), self.value_up)
        if self.gate is not None:
            out = out * sigmoid(self.gate(x))[:, :, None]
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
        self,
        q_latent: Floats,
        q_rope: Floats,
        entries: Floats,
        index: list[Floats],
        batch: Batch,
        sequence: int,
        layer: int,
    ) -> Floats:
        """The summed latents [T, h, L] of one sequence's tokens."""
        cache = batch.sequences[sequence]
        kept, *keys = cache.append(layer, entries, *index[:1], first=self.first_stream)
        if self.selected is None:
            return ops.mla_attention(q_latent, q_rope, kept, scale=self.scale)
        # A token that sees no more than are selected reads them all: by its position alone, so
        # that it does not matter how a prompt is cut.
        rows, start = len(entries), batch.starts[sequence]
        few = min(max(self.selected - start, 0), rows)
        out = np.empty((rows, self.heads, self.latent), np.float32)
        if few:
            out[:few] = ops.mla_attention(
                q_latent[:few], q_rope[:few], kept[: start + few], scale=self.scale
            )
        if few < rows:
            if self.indexer is not None:
                queries, weights = index[1][few:], index[2][few:]
                batch.selected[sequence] = self.indexer.select(queries, weights, keys[0])
            out[few:] = ops.sparse_attention(
                q_latent[few:],
                kept,
                batch.selected[sequence],
                q_rope=q_rope[few:],
                scale=self.scale,
            )
        return out

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("q_a", "q_norm", "q", "kv_a", "kv_norm", "indexer", "gate", "o"):
            module = getattr(self, part)
            if module is not None:
                for name, kind, weight in module.weights():
                    yield f"{part}.{name}", kind, weight
        yield "key_up", "attention", self.key_up
        yield "value_up", "attention", self.value_up
