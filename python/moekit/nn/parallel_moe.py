"""Gemma 4's layer: a dense part and a mixture side by side, each between two norms."""

from typing import Any

import numpy as np
import numpy.typing as npt

from .. import ops
from ..ops import Assignment, Experts, PackedWeight
from .batch import Batch
from .block import Block
from .moe import MLP, MoE
from .norm import Norm
from .router import Router
from .types import Floats, Ids, Tally, Weights


class NormedRouter(Router):
    """A router that norms its input, and multiplies an expert's weight by a number of its own.

    `norm` acts on x; `expert_scale` [E] comes after all of the rule, normalisation included.
    """

    __slots__ = ("expert_scale", "norm")

    def __init__(
        self,
        weight: PackedWeight | npt.ArrayLike,
        k: int,
        *,
        norm: Norm,
        expert_scale: npt.ArrayLike,
        **rule: Any,
    ) -> None:
        super().__init__(weight, k, **rule)
        self.norm = norm
        self.expert_scale: Floats = np.ascontiguousarray(expert_scale, np.float32)
        if self.expert_scale.shape != (self.count,):
            raise ValueError(
                f"[NormedRouter] expert_scale has shape {list(self.expert_scale.shape)}; "
                f"[{self.count}] is required"
            )

    def logits(self, x: Floats) -> Floats:
        """Float32 [T, E]: the router's scores before any activation."""
        return super().logits(self.norm(x))

    def route(self, logits: Floats, ids: Ids | None = None, **changes: Any) -> Assignment:
        """The choice for given logits; `changes` override keywords of `ops.route`, k included."""
        return self._scaled(super().route(logits, ids, **changes))

    def weigh(self, logits: Floats, experts: Ids) -> Assignment:
        """Weights for experts int32 [T, K] that were chosen elsewhere (-1: empty)."""
        return self._scaled(super().weigh(logits, experts))

    def _scaled(self, chosen: Assignment) -> Assignment:
        # An empty slot is -1 and weighs 0, whichever number it is multiplied by.
        weights = chosen.weights * self.expert_scale[chosen.experts]
        return Assignment(chosen.experts, weights, expert_count=self.count)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        yield from super().weights()
        for name, _, weight in self.norm.weights():
            yield f"norm.{name}", "router", weight
        yield "expert_scale", "router", self.expert_scale


class ParallelMoE(MoE):
    """dense_post(dense(dense_norm(x))) + post(experts(norm(x))): both see the same x.

    The router sees x itself.
    """

    __slots__ = ("dense", "dense_norm", "dense_post", "norm", "post")

    def __init__(
        self,
        router: Router,
        experts: Experts,
        dense: MLP,
        *,
        norm: Norm,
        post: Norm,
        dense_norm: Norm,
        dense_post: Norm,
    ) -> None:
        super().__init__(router, experts)
        self.dense = dense
        self.norm, self.post = norm, post
        self.dense_norm, self.dense_post = dense_norm, dense_post

    def apply(
        self, x: Floats, assignment: Assignment, tally: Tally | None = None, layer: int = 0
    ) -> Floats:
        """Run the experts of a given assignment, and the dense part."""
        routed = ops.moe_ffn(
            self.norm(x), assignment, self.experts, compute=self.compute, tally=tally, layer=layer
        )
        return self.dense_post(self.dense(self.dense_norm(x))) + self.post(routed)

    @property
    def row_work(self) -> int:
        """Multiply-adds for one token."""
        return super().row_work + self.dense.row_work

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        yield from super().weights()
        for part in ("dense", "norm", "post", "dense_norm", "dense_post"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight


class ScaledBlock(Block):
    """A block whose result, the residual stream included, is multiplied by `scale`."""

    __slots__ = ("scale",)

    def __init__(self, *parts: Any, scale: float, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.scale = np.float32(scale)

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        y = super().__call__(x, batch, layer)
        y *= self.scale
        return y
