"""Feed-forward layers: a mixture of experts, and the dense kind as a mixture of one."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from .. import ops
from ..ops import Assignment, Experts
from .batch import Batch
from .router import Router
from .types import Floats, Weights

# Any Python function may choose: (x [T, H], logits [T, E] or None) -> Assignment.
RouterFunction: TypeAlias = Callable[[Floats, Floats | None], Assignment]


def _expert_weights(experts: Experts, kind: str) -> Weights:
    for name in ("gate", "up", "down"):
        weight = getattr(experts, name)
        if weight is not None:
            yield name, kind, weight


def _expert_work(experts: Experts) -> int:
    return (2 if experts.gate is None else 3) * experts.hidden * experts.inter


class MoE:
    """Routes each row to its experts and adds up what they give, the shared expert's part last.

    `router` is a `Router` or a function `(x, logits) -> Assignment` (logits are None then, as
    there is no router to make them); `shared` is an `Experts` of one, run for every token.
    """

    __slots__ = ("compute", "experts", "router", "shared")

    def __init__(
        self,
        router: Router | RouterFunction,
        experts: Experts,
        shared: Experts | None = None,
        compute: str = "auto",
    ) -> None:
        if isinstance(router, Router) and router.count != experts.count:
            raise ValueError(
                f"[MoE] the router chooses among {router.count} experts; there are {experts.count}"
            )
        self.router = router
        self.experts = experts
        self.shared = shared
        self.compute = compute

    def __repr__(self) -> str:
        return f"MoE({self.router!r}, {self.experts!r}, shared={self.shared!r})"

    def assign(self, x: Floats) -> Assignment:
        """The experts of each row of `x` [T, H]."""
        if isinstance(self.router, Router):
            return self.router(x)
        return self.router(x, None)

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None or batch.routing is None:
            assignment = self.assign(x)
        else:
            assignment = batch.routing.assign(self, x, layer)
        return self.apply(x, assignment)

    def apply(self, x: Floats, assignment: Assignment) -> Floats:
        """Run the experts of a given assignment."""
        return ops.moe_ffn(x, assignment, self.experts, shared=self.shared, compute=self.compute)

    @property
    def row_work(self) -> int:
        """Multiply-adds for one token."""
        k = self.router.k if isinstance(self.router, Router) else self.experts.count
        return k * _expert_work(self.experts) + (_expert_work(self.shared) if self.shared else 0)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        if isinstance(self.router, Router):
            for name, kind, weight in self.router.weights():
                yield f"router.{name}", kind, weight
        for name, kind, weight in _expert_weights(self.experts, "experts"):
            yield f"experts.{name}", kind, weight
        if self.shared is not None:
            for name, kind, weight in _expert_weights(self.shared, "shared experts"):
                yield f"shared.{name}", kind, weight


class MLP:
    """down(act(gate x) * (up x)): the same kernels as a mixture, with one expert for every row."""

    __slots__ = ("_everyone", "compute", "experts")

    def __init__(self, experts: Experts, compute: str = "auto") -> None:
        if experts.count != 1:
            raise ValueError(f"[MLP] {experts.count} experts; one is required")
        self.experts = experts
        self.compute = compute
        self._everyone = _all_to_first(1)

    def __repr__(self) -> str:
        return f"MLP({self.experts!r})"

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        # Kept for decode, where the number of rows does not change. Another thread may replace
        # it meanwhile, hence the local name.
        everyone = self._everyone
        if len(everyone.experts) != len(x):
            everyone = self._everyone = _all_to_first(len(x))
        return ops.moe_ffn(x, everyone, self.experts, compute=self.compute)

    @property
    def row_work(self) -> int:
        """Multiply-adds for one token."""
        return _expert_work(self.experts)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        return _expert_weights(self.experts, "dense feed-forward")


def _all_to_first(rows: int) -> Assignment:
    return Assignment(np.zeros((rows, 1), np.int32), np.ones((rows, 1), np.float32))
