"""The router: which experts a token goes to, and with which weight."""

from typing import Any

import numpy as np
import numpy.typing as npt

from .. import ops
from ..ops import Assignment, PackedWeight
from ..ops.routing import route_by, router_rule
from .linear import Linear
from .types import Floats, Weights


class Router:
    """Scores `x` [T, H] against `weight` [E, H] and chooses `k` experts by `ops.route`'s rules.

    Every keyword is one of `ops.route` (score, select_bias, groups, top_groups, group_score,
    normalize, scale). `bias` [E] is added to the logits. The weight stays in float32 unless
    `format` says otherwise: a router that rounds differently chooses differently.
    """

    __slots__ = ("_core_rule", "_rule", "_select_bias", "k", "linear")

    def __init__(
        self,
        weight: PackedWeight | npt.ArrayLike,
        k: int,
        *,
        bias: npt.ArrayLike | None = None,
        format: str = "f32",
        **rule: Any,
    ) -> None:
        self.linear = Linear(weight, bias, format, kind="router")
        self.k = k
        if not 1 <= k <= self.linear.rows:
            raise ValueError(f"[Router] k is {k}; 1 to {self.linear.rows} experts are there")
        if rule.get("select_bias") is not None:
            rule["select_bias"] = np.ascontiguousarray(rule["select_bias"], np.float32)
        self._rule: dict[str, Any] = {name: v for name, v in rule.items() if v is not None}
        # Made once: a layer routes at every token.
        self._select_bias: Floats | None = self._rule.get("select_bias")
        fixed = {name: v for name, v in self._rule.items() if name != "select_bias"}
        self._core_rule = router_rule(k, **fixed)

    def __repr__(self) -> str:
        rule = "".join(f", {name}={v!r}" for name, v in self._rule.items() if np.isscalar(v))
        return f"Router({self.count} experts, k={self.k}{rule})"

    @property
    def count(self) -> int:
        """Experts to choose from."""
        return self.linear.rows

    @property
    def rule(self) -> dict[str, Any]:
        """The keywords of `ops.route` that this router uses, without k."""
        return dict(self._rule)

    def logits(self, x: Floats) -> Floats:
        """Float32 [T, E]: the router's scores before any activation."""
        return self.linear(x)

    def route(self, logits: Floats, **changes: Any) -> Assignment:
        """The choice for given logits; `changes` override keywords of `ops.route`, k included."""
        if not changes:
            return route_by(self._core_rule, logits, select_bias=self._select_bias)
        rule = {**self._rule, **changes}
        return ops.route(logits, rule.pop("k", self.k), **rule)

    def __call__(self, x: Floats) -> Assignment:
        return self.route(self.linear(x))

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        yield from self.linear.weights()
        if "select_bias" in self._rule:
            yield "select_bias", "router", self._rule["select_bias"]
