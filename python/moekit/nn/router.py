"""The router: which experts a token goes to, and with which weight."""

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .. import _core, ops
from ..ops import Assignment, PackedWeight
from ..ops.router_rules import look_up
from ..ops.routing import route_by, router_rule, weigh_by
from ..ops.watched import Watched
from .linear import Linear
from .types import Floats, Ids, Weights


class Router(Watched):
    """Scores `x` [T, H] against `weight` [E, H] and chooses `k` experts by `ops.route`'s rules.

    Every keyword is one of `ops.route` (score, select_bias, groups, top_groups, group_score,
    normalize, scale). `bias` [E] is added to the logits, which with a `softcap` c become
    c * tanh(logit / c) (Laguna). The weight stays in float32 unless `format` says otherwise: a
    router that rounds differently chooses differently.
    """

    __slots__ = ("_core_rule", "_rule", "_select_bias", "k", "linear", "softcap")

    #: Does the choice depend on token ids, so that `route` needs them?
    needs_ids: ClassVar[bool] = False

    def __init__(
        self,
        weight: PackedWeight | npt.ArrayLike,
        k: int,
        *,
        bias: npt.ArrayLike | None = None,
        softcap: float | None = None,
        format: str = "f32",
        **rule: Any,
    ) -> None:
        self.linear = Linear(weight, bias, format, kind="router")
        self.softcap = None if softcap is None else np.float32(softcap)
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
        return f"{type(self).__name__}({self.count} experts, k={self.k}{rule})"

    @property
    def count(self) -> int:
        """Experts to choose from."""
        return self.linear.rows

    @property
    def rule(self) -> dict[str, Any]:
        """The keywords of `ops.route` that this router uses, without k."""
        return dict(self._rule)

    @property
    def core_rule(self) -> tuple[_core.RouterRule, Floats | None]:
        """The rule as the core reads it, and the bias [E] that selects."""
        return self._core_rule, self._select_bias

    @property
    def weighs_input(self) -> bool:
        """Do the weights scale the experts' inputs (Llama 4) instead of their outputs?"""
        return self._core_rule.weighs_input

    def logits(self, x: Floats) -> Floats:
        """Float32 [T, E]: the router's scores before any activation."""
        scores = self.linear(x)
        if self.softcap is not None:
            scores = np.tanh(scores / self.softcap) * self.softcap
        return scores

    def route(self, logits: Floats, ids: Ids | None = None, **changes: Any) -> Assignment:
        """The choice for given logits; `changes` override keywords of `ops.route`, k included.

        `ids` int32 [T] are the tokens' ids, for routers that look at them.
        """
        if not changes:
            return route_by(self._core_rule, logits, select_bias=self._select_bias)
        rule = {**self._rule, **changes}
        return ops.route(logits, rule.pop("k", self.k), **rule)

    def weigh(self, logits: Floats, experts: Ids) -> Assignment:
        """Weights for experts int32 [T, K] that were chosen elsewhere (-1: empty)."""
        return weigh_by(self._core_rule, logits, experts)

    def __call__(self, x: Floats, ids: Ids | None = None) -> Assignment:
        return self.route(self.logits(x), ids)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        yield from self.linear.weights()
        if "select_bias" in self._rule:
            yield "select_bias", "router", self._rule["select_bias"]


class HashRouter(Router):
    """A hash layer: `table` int [V, K] says which experts serve a token id, the gate weighs them.

    Roller et al. 2021 (arXiv 2106.04426); DeepSeek-V4's first layers. `rule` are the keywords of
    `ops.weigh`. Inside a model the batch brings the ids; a mixture on its own takes them as
    `moe.assign(x, ids)`.
    """

    __slots__ = ("table",)

    needs_ids = True

    def __init__(
        self, weight: PackedWeight | npt.ArrayLike, table: npt.ArrayLike, **rule: Any
    ) -> None:
        rows = np.ascontiguousarray(table, np.int32)
        if rows.ndim != 2 or rows.shape[1] == 0:
            raise ValueError(f"[HashRouter] table has shape {rows.shape}; [V, K] is required")
        super().__init__(weight, rows.shape[1], **rule)
        if rows.min(initial=0) < -1 or rows.max(initial=-1) >= self.count:
            raise ValueError(
                f"[HashRouter] table has experts {rows.min()} to {rows.max()}; "
                f"-1 (none) or 0 to {self.count - 1} is required"
            )
        self.table = rows

    def route(self, logits: Floats, ids: Ids | None = None, **changes: Any) -> Assignment:
        """The table's experts, weighed by the logits.

        `mask` takes an expert out of its slots and of the weights, `k` keeps the first k columns;
        a table leaves nothing else to change: ValueError.
        """
        if ids is None:
            raise ValueError("[HashRouter] no token ids were given; they choose the experts")
        experts = look_up(self.table, ids, "HashRouter")
        if not changes:
            return weigh_by(self._core_rule, logits, experts)
        unknown = changes.keys() - {"mask", "k"}
        if unknown:
            raise ValueError(f"[HashRouter] {min(unknown)} cannot change what a table chooses")
        k = changes.get("k", self.k)
        if k > self.k:
            raise ValueError(f"[HashRouter] k is {k}; the table has {self.k} columns")
        experts = np.ascontiguousarray(experts[:, :k])
        mask = changes.get("mask")
        if mask is not None:
            forbidden = np.broadcast_to(mask, logits.shape)
            gone = np.take_along_axis(forbidden, np.maximum(experts, 0).astype(np.int64), axis=1)
            experts[gone] = -1
            mask = np.ascontiguousarray(mask)
        return weigh_by(self._core_rule, logits, experts, mask=mask)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        yield from super().weights()
        yield "table", "router", self.table
