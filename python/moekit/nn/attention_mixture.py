"""Attention whose queries and outputs are experts: mixture of attention heads.

Zhang et al. 2022 (arXiv 2210.05144), as JetMoE has it (arXiv 2404.07413): a token's router chooses
k pairs of query and output projections; keys and values are the same for all of them.
"""

import numpy as np
import numpy.typing as npt

from .. import ops
from ..ops import PackedWeight
from .batch import Batch
from .linear import Linear
from .router import Router
from .types import Floats, Weights


class AttentionMixture:
    """Each of the k chosen experts has `kv_heads` query heads of width D, one for each kv head.

    `q` is packed [E, kv_heads * D, H] and `o` [E, H, kv_heads * D]; `k` and `v` give
    [kv_heads * D]; `bias` [H] is added at the end. The outputs of a token's experts are weighed by
    the router. `frequencies` and `rope_factor` as in `Attention`.
    """

    __slots__ = (
        "bias",
        "frequencies",
        "head_dim",
        "k",
        "kv_heads",
        "o",
        "q",
        "rope_factor",
        "router",
        "scale",
        "v",
    )

    def __init__(
        self,
        router: Router,
        q: PackedWeight,
        k: Linear,
        v: Linear,
        o: PackedWeight,
        bias: npt.ArrayLike,
        *,
        kv_heads: int,
        frequencies: npt.ArrayLike,
        rope_factor: float = 1.0,
    ) -> None:
        count, width, hidden = q.shape
        if o.shape != (count, hidden, width) or router.count != count:
            raise ValueError(
                f"[AttentionMixture] q has shape {q.shape}, o {o.shape}, and the router chooses "
                f"among {router.count}; they do not fit"
            )
        if kv_heads < 1 or width % kv_heads or not k.rows == v.rows == width:
            raise ValueError(
                f"[AttentionMixture] k and v have {k.rows} and {v.rows} rows; {width}, "
                f"{kv_heads} heads, are required"
            )
        self.router, self.q, self.k, self.v, self.o = router, q, k, v, o
        self.bias: Floats = np.ascontiguousarray(bias, np.float32)
        self.kv_heads = kv_heads
        self.head_dim = width // kv_heads
        self.scale = self.head_dim**-0.5
        self.frequencies: Floats = np.ascontiguousarray(frequencies, np.float32)
        self.rope_factor = rope_factor

    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a token leaves in a `KVCache`: its keys and its values."""
        return (self.kv_heads, self.head_dim), (self.kv_heads, self.head_dim)

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None:
            batch, layer = Batch.alone(x, self.cache_rows), 0
        rows, heads, width = len(x), self.kv_heads, self.head_dim
        assignment = self.router(x)
        chosen = assignment.experts.shape[1]
        plan = ops.plan(assignment, self.router.count)
        # From the experts' order to [T, k, heads, D], then heads that share keys side by side.
        by_expert = np.empty((rows, chosen, heads * width), np.float32)
        by_expert[plan.rows, plan.slots] = ops.grouped_matmul(
            ops.permute(x, plan), self.q, plan.offsets
        )
        by_head = by_expert.reshape(rows, chosen, heads, width).transpose(0, 2, 1, 3)
        angles = batch.angles(self.frequencies, self.rope_factor)
        q = ops.rope(by_head.reshape(rows, heads * chosen, width), angles=angles)
        k = ops.rope(self.k(x).reshape(rows, heads, width), angles=angles)
        v = self.v(x).reshape(rows, heads, width)
        by_head = self._attend(q, k, v, batch, layer).reshape(rows, heads, chosen, width)
        out = by_head.transpose(0, 2, 1, 3).reshape(rows, chosen, heads * width)
        y = ops.grouped_matmul(out[plan.rows, plan.slots], self.o, plan.offsets)
        mixed: Floats = ops.combine(y, plan, assignment) + self.bias
        return mixed

    def _attend(self, q: Floats, k: Floats, v: Floats, batch: Batch, layer: int) -> Floats:
        parts = []
        for rows, cache in zip(batch.rows, batch.sequences, strict=True):
            keys, values = cache.append(layer, k[rows], v[rows])
            parts.append(ops.attention(q[rows], keys, values, scale=self.scale))
        return np.concatenate(parts)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("router", "k", "v"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight
        yield "q", "attention", self.q
        yield "o", "attention", self.o
        yield "bias", "attention", self.bias
