"""Grouped-query attention (Ainslie et al., arXiv 2305.13245) over a cache of keys and values."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .. import ops
from ..ops.watched import Watched
from .batch import Batch
from .gates import sigmoid, softplus
from .linear import Linear, together
from .norm import Norm
from .types import Floats, Weights

GATES = {"sigmoid": sigmoid, "softplus": softplus}


@dataclass(frozen=True, slots=True)
class QueryTemperature:
    """Queries grow with their position p: times 1 + scale * ln(1 + floor((p + offset) / length)).

    Scalable softmax (arXiv 2501.19399) as Llama 4 (offset 1) and Mistral 4 (offset 0) use it.
    """

    scale: float
    length: float
    offset: int = 0

    def __call__(self, positions: npt.NDArray[np.int64]) -> Floats:
        """float32 [T] for positions [T]."""
        steps = np.floor(
            (positions.astype(np.float32) + np.float32(self.offset)) / np.float32(self.length)
        )
        factors: Floats = np.log1p(steps) * np.float32(self.scale) + np.float32(1)
        return factors


@dataclass(frozen=True, slots=True)
class LongContext:
    """Other frequencies for sequences of more than `beyond` tokens (LongRoPE, arXiv 2402.13753).

    What is cached keeps the rotation that it got when the sequence was shorter. `anew`: a
    generation that comes to be longer reads its sequence from the beginning again instead.
    """

    frequencies: Floats
    factor: float
    beyond: int
    anew: bool = False

    def angles(self, batch: Batch, short: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
        """cos and sin [T, n], those of long sequences replaced."""
        is_long = [
            start + rows.stop - rows.start > self.beyond
            for start, rows in zip(batch.starts, batch.rows, strict=True)
        ]
        if not any(is_long):
            return short
        long = batch.angles(self.frequencies, self.factor)
        if all(is_long):
            return long
        cos, sin = short[0].copy(), short[1].copy()
        for rows, replaced in zip(batch.rows, is_long, strict=True):
            if replaced:
                cos[rows], sin[rows] = long[0][rows], long[1][rows]
        return cos, sin


class Attention(Watched):
    """`heads` queries share `kv_heads` keys and values; position by rotation of q and k.

    Linear layers: q [heads * D, H], k [kv_heads * D, H], v [kv_heads * V, H], o [H, heads * V]; v
    may be k itself (Gemma 4).

    The token's way, each step where it is asked for:

    - `q_norm` and `k_norm`, of each head (size D, or without weight) or of the whole projection
      (size heads * D), before the rotation or, with `norm_after_rope`, after it; `v_norm` as well;
    - `clip`: q, k and v are clamped to ±clip (DBRX, OLMoE); v times `value_scale` (MiMo);
    - rotation of the first 2 n dimensions by `frequencies` [n] (those of `ops.rope_frequencies`;
      None: no position), in halves or `interleaved` pairs; `long`: others for long sequences;
    - `temperature`: queries are scaled by their position;
    - the last `window` keys are seen, itself included, or those of the same `chunk`, or all;
      scores times `scale` (D ** -0.5 by default), softcapped, with a learnt score per head beside
      them (`sinks` [heads]);
    - `gate`: the output times sigmoid or softplus (`gate_activation`) of a linear layer of x, a
      value for each of the output's columns or for each head; with `gated_queries` q is
      [heads * 2 D, H] and gives each head's gates behind its queries (Qwen3-Next).
    """

    __slots__ = (
        "chunk",
        "clip",
        "frequencies",
        "gate",
        "gate_activation",
        "gated_queries",
        "head_dim",
        "heads",
        "interleaved",
        "k",
        "k_norm",
        "kv_heads",
        "long",
        "norm_after_rope",
        "o",
        "q",
        "q_norm",
        "rope_factor",
        "scale",
        "sinks",
        "softcap",
        "temperature",
        "v",
        "v_head_dim",
        "v_norm",
        "value_scale",
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
        long: LongContext | None = None,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
        v_norm: Norm | None = None,
        norm_after_rope: bool = False,
        clip: float | None = None,
        value_scale: float = 1.0,
        temperature: QueryTemperature | None = None,
        window: int | None = None,
        chunk: int | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: npt.ArrayLike | None = None,
        gate: Linear | None = None,
        gate_activation: str = "sigmoid",
        gated_queries: bool = False,
    ) -> None:
        if heads < 1 or kv_heads < 1 or heads % kv_heads:
            raise ValueError(
                f"[Attention] {heads} heads share {kv_heads}; a positive multiple is required"
            )
        per_head = 2 * heads if gated_queries else heads
        self.head_dim = q.rows // per_head
        self.v_head_dim = v.rows // kv_heads
        self.heads = heads
        self.kv_heads = kv_heads
        if q.rows % per_head or k.rows != kv_heads * self.head_dim or v.rows % kv_heads:
            raise ValueError(
                f"[Attention] q, k, v have {q.rows}, {k.rows}, {v.rows} rows; they do not fit "
                f"{heads} and {kv_heads} heads"
            )
        if o.cols != heads * self.v_head_dim:
            raise ValueError(
                f"[Attention] o has {o.cols} columns; {heads} heads of {self.v_head_dim} give "
                f"{heads * self.v_head_dim}"
            )
        if gated_queries and (gate is not None or self.head_dim != self.v_head_dim):
            raise ValueError(
                "[Attention] queries with gates were given beside a gate, or with values of "
                f"{self.v_head_dim} columns; no gate and {self.head_dim} columns are required"
            )
        if gate is not None and gate.rows not in (heads, o.cols):
            raise ValueError(
                f"[Attention] gate has {gate.rows} rows; {heads} or {o.cols} are required"
            )
        if gate_activation not in GATES:
            raise ValueError(
                f"[Attention] gate_activation is {gate_activation!r}; one of {', '.join(GATES)} "
                "is required"
            )
        self.q, self.k, self.v, self.o = q, k, v, o
        self.q_norm, self.k_norm, self.v_norm = q_norm, k_norm, v_norm
        self.norm_after_rope = norm_after_rope
        self.clip = clip
        self.value_scale = value_scale
        self.frequencies: Floats | None = (
            None if frequencies is None else np.ascontiguousarray(frequencies, np.float32)
        )
        self.rope_factor = rope_factor
        self.interleaved = interleaved
        self.long = long
        self.temperature = temperature
        self.window = window
        self.chunk = chunk
        self.scale = self.head_dim**-0.5 if scale is None else scale
        self.softcap = softcap
        self.sinks: Floats | None = (
            None if sinks is None else np.ascontiguousarray(sinks, np.float32)
        )
        if self.sinks is not None and self.sinks.shape != (heads,):
            raise ValueError(
                f"[Attention] sinks have shape {self.sinks.shape}; [{heads}] is required"
            )
        self.gate = gate
        self.gate_activation = gate_activation
        self.gated_queries = gated_queries

    @property
    def is_plain(self) -> bool:
        """Is it projections, norms of heads, rotation, attention and nothing else?"""
        return (
            self.v is not self.k
            and self.v_norm is None
            and self.clip is None
            and self.value_scale == 1.0
            and self.temperature is None
            and self.long is None
            and self.gate is None
            and not self.gated_queries
            and not (self.norm_after_rope and (self.q_norm or self.k_norm))
        )

    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a token leaves in a `KVCache`: its keys and its values."""
        return (self.kv_heads, self.head_dim), (self.kv_heads, self.v_head_dim)

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None:
            batch, layer = Batch.alone(x, self.cache_rows), 0
        early = (None, None) if self.norm_after_rope else (self.q_norm, self.k_norm)
        distinct = (self.q, self.k) if self.v is self.k else (self.q, self.k, self.v)
        q, keys, *rest = together(distinct, x)
        values = rest[0] if rest else keys
        gates = None
        if self.gated_queries:
            q, gates = np.split(q.reshape(len(x), self.heads, -1), 2, axis=2)
            q = q.reshape(len(x), -1)
        q = self._heads_of(q, self.heads, self.head_dim, early[0])
        k = self._heads_of(keys, self.kv_heads, self.head_dim, early[1])
        v = self._heads_of(values, self.kv_heads, self.v_head_dim, self.v_norm)
        if self.value_scale != 1.0:
            v = v * np.float32(self.value_scale)
        q, k = self._rotate(q, k, batch)
        if self.norm_after_rope:
            q = q if self.q_norm is None else self.q_norm(q)
            k = k if self.k_norm is None else self.k_norm(k)
        if self.temperature is not None:
            q = q * self.temperature(batch.positions)[:, None, None]
        out = self._attend(x, q, k, v, batch, layer)
        if self.gate is not None:  # [T, heads, V], or [T, heads, 1] where a head has one value
            gates = self.gate(x).reshape(len(x), self.heads, -1)
        if gates is not None:
            out = out * GATES[self.gate_activation](gates)
        return self.o(out.reshape(len(x), self.heads * self.v_head_dim))

    def _heads_of(self, x: Floats, heads: int, width: int, norm: Norm | None) -> Floats:
        """A projection [T, heads * width], normalised and clamped, as [T, heads, width]."""
        per_head = norm is not None and norm.size in (width, None)
        if norm is not None and not per_head:
            x = norm(x)
        x = x.reshape(len(x), heads, width)
        if norm is not None and per_head:
            x = norm(x)
        if self.clip is not None:
            x = np.clip(x, np.float32(-self.clip), np.float32(self.clip))
        return x

    def _rotate(self, q: Floats, k: Floats, batch: Batch) -> tuple[Floats, Floats]:
        if self.frequencies is None:
            return q, k
        angles = batch.angles(self.frequencies, self.rope_factor)
        if self.long is not None:
            angles = self.long.angles(batch, angles)
        return (
            ops.rope(q, angles=angles, interleaved=self.interleaved),
            ops.rope(k, angles=angles, interleaved=self.interleaved),
        )

    def _attend(
        self, x: Floats, q: Floats, k: Floats, v: Floats, batch: Batch, layer: int
    ) -> Floats:
        parts = []
        for rows, cache in zip(batch.rows, batch.sequences, strict=True):
            keys, values = cache.append(layer, k[rows], v[rows])
            parts.append(
                ops.attention(
                    q[rows],
                    keys,
                    values,
                    scale=self.scale,
                    window=self.window,
                    chunk=self.chunk,
                    softcap=self.softcap,
                    sinks=self.sinks,
                )
            )
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("q", "k", "v", "gate", "o", "q_norm", "k_norm", "v_norm"):
            module = getattr(self, part)
            if module is not None and (part != "v" or module is not self.k):
                for name, kind, weight in module.weights():
                    yield f"{part}.{name}", kind, weight
        if self.sinks is not None:
            yield "sinks", "attention", self.sinks
