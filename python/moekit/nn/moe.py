"""Feed-forward layers: a mixture of experts, and the dense kind as a mixture of one."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .. import ops
from ..ops import Assignment, Experts
from ..ops.watched import Watched
from .batch import Batch
from .linear import Linear
from .router import Router
from .types import Floats, Ids, Tally, Weights

# Any Python function may choose: (x [T, H], logits [T, E] or None) -> Assignment.
RouterFunction: TypeAlias = Callable[[Floats, Floats | None], Assignment]


def _expert_weights(experts: Experts, kind: str) -> Weights:
    for name in ("gate", "up", "down", "gate_bias", "up_bias", "down_bias"):
        weight = getattr(experts, name)
        if weight is not None:
            yield name, kind, weight


def _expert_work(experts: Experts) -> int:
    return (2 if experts.gate is None else 3) * experts.hidden * experts.inter


class MoE(Watched):
    """Routes each row to its experts and adds up what they give, the shared expert's part last.

    `router` is a `Router` or a function `(x, logits) -> Assignment`; a function that replaces a
    router (`moe.router = function`, or `gate=` here) gets the logits of the one that was there,
    which stays as `moe.gate`; without one logits are None. `shared` is an `Experts` of one, run for
    every token, its part times the sigmoid of the layer `shared_gate` [1, H] of x (Qwen2-MoE);
    `average`: half of the sum of both parts (Cohere). `bias` [H] is added to all of it (JetMoE). Of
    the router's ids, the last `zero_experts`
    give the token back as it is. With a `capacity` an expert serves so many tokens of a sequence in
    one pass, the first ones, and later ones lose it (Switch): a token's bytes then depend on the
    tokens before it in the pass, as in the model's own code.
    """

    __slots__ = (
        "_router",
        "average",
        "bias",
        "capacity",
        "compute",
        "experts",
        "gate",
        "shared",
        "shared_gate",
        "zero_experts",
    )

    def __init__(
        self,
        router: Router | RouterFunction,
        experts: Experts,
        shared: Experts | None = None,
        compute: str = "auto",
        *,
        zero_experts: int = 0,
        gate: Router | None = None,
        shared_gate: Linear | None = None,
        average: bool = False,
        bias: npt.ArrayLike | None = None,
        capacity: int | None = None,
    ) -> None:
        if shared_gate is not None and (shared is None or shared_gate.rows != 1):
            raise ValueError(
                f"[MoE] shared_gate has {shared_gate.rows} rows; one row, and a shared expert, "
                "are required"
            )
        self.experts = experts
        self.shared = shared
        self.shared_gate = shared_gate
        self.average = average
        self.bias: Floats | None = None if bias is None else np.ascontiguousarray(bias, np.float32)
        self.compute = compute
        self.zero_experts = zero_experts
        self.capacity = capacity
        #: The router whose logits a function of the caller's own gets to see; may be None.
        self.gate: Router | None = None
        if gate is not None:
            self.router = gate
        self.router = router

    def __repr__(self) -> str:
        return f"MoE({self.router!r}, {self.experts!r}, shared={self.shared!r})"

    @property
    def count(self) -> int:
        """Ids that a router may give: 0 to count - 1, the zero experts last."""
        return self.experts.count + self.zero_experts

    @property
    def is_plain(self) -> bool:
        """Is it a router, experts and at most a shared one, gated or not, and nothing else?"""
        return (
            self.bias is None
            and self.capacity is None
            and not self.average
            and self.zero_experts == 0
        )

    @property
    def router(self) -> Router | RouterFunction:
        """What chooses; setting a function keeps the router before it as `gate`."""
        return self._router

    @router.setter
    def router(self, router: Router | RouterFunction) -> None:
        if isinstance(router, Router):
            if router.count != self.count:
                zero = f" and {self.zero_experts} zero experts" if self.zero_experts else ""
                raise ValueError(
                    f"[MoE] the router chooses among {router.count} experts; "
                    f"there are {self.experts.count}{zero}"
                )
            self.gate = router
        elif not callable(router):
            raise TypeError(
                f"[MoE] router is {router!r}; a Router or a function (x, logits) is required"
            )
        self._router = router

    def assign(self, x: Floats, ids: Ids | None = None) -> Assignment:
        """The experts of each row of `x` [T, H]; `ids` int32 [T] for routers that look at them."""
        router = self._router
        if isinstance(router, Router):
            return router(x, ids)
        return self.ask(router, x, self.logits(x))

    def logits(self, x: Floats) -> Floats | None:
        """Float32 [T, E] of the gate; None where there is none."""
        return None if self.gate is None else self.gate.logits(x)

    def route(self, x: Floats, logits: Floats | None, ids: Ids | None) -> Assignment:
        """`assign` where the gate's logits are known already."""
        router = self._router
        if isinstance(router, Router):
            assert logits is not None
            return router.route(logits, ids)
        return self.ask(router, x, logits)

    def weigh(self, x: Floats, experts: Ids) -> Assignment:
        """Experts int32 [T, K] that were chosen elsewhere, with the weights of the gate."""
        if self.gate is None:
            raise ValueError("[MoE] the layer has no router to weigh experts; weights are required")
        return self.gate.weigh(self.gate.logits(x), experts)

    def ask(
        self, function: "Router | RouterFunction", x: Floats, logits: Floats | None
    ) -> Assignment:
        """The answer of a function that chooses; TypeError if it is no Assignment."""
        assert not isinstance(function, Router)
        return self.checked(function(x, logits), len(x))

    def checked(self, answer: Assignment, tokens: int) -> Assignment:
        """An answer for that many tokens and these experts; TypeError, ValueError if it is not."""
        if not isinstance(answer, Assignment):
            raise TypeError(
                f"[MoE] the router gave {type(answer).__name__}; an Assignment is required"
            )
        if len(answer) != tokens:
            raise ValueError(f"[MoE] the router gave {len(answer)} tokens; {tokens} are there")
        if int(answer.experts.max(initial=-1)) >= self.count:
            raise ValueError(
                f"[MoE] the router gave expert {answer.experts.max()}; there are {self.count}"
            )
        return answer

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None:
            return self.apply(x, self.limited(self.assign(x), [slice(0, len(x))]))
        if batch.routing is None:
            chosen = self.limited(self.assign(x, batch.ids), batch.rows)
        else:
            chosen = batch.routing.assign(self, x, layer)
        if batch.choices is not None:
            batch.choices[layer] = chosen
        if batch.tally is None:
            return self.apply(x, chosen)
        return self.apply(x, chosen, batch.tally, layer)

    def limited(self, chosen: Assignment, rows: Sequence[slice]) -> Assignment:
        """The assignment that an expert's capacity leaves, in each of the sequences `rows`."""
        if self.capacity is None:
            return chosen
        experts, weights = chosen.experts.copy(), chosen.weights.copy()
        for seen in rows:
            part = Assignment(experts[seen], weights[seen], expert_count=self.count)
            part = ops.limit_capacity(part, self.count, capacity=self.capacity)
            experts[seen], weights[seen] = part.experts, part.weights
        return Assignment(experts, weights, expert_count=self.count, on_input=chosen.on_input)

    def apply(
        self, x: Floats, assignment: Assignment, tally: Tally | None = None, layer: int = 0
    ) -> Floats:
        """Run the experts of a given assignment, which `tally` counts as that of a layer."""
        scale = None
        if self.shared_gate is not None:
            scale = ops.gate(None, self.shared_gate(x), "sigmoid").reshape(-1)
        out = ops.moe_ffn(
            x,
            assignment,
            self.experts,
            shared=self.shared,
            shared_scale=scale,
            compute=self.compute,
            zero_experts=self.zero_experts,
            tally=tally,
            layer=layer,
        )
        if self.average:
            out *= np.float32(0.5)
        if self.bias is not None:
            out += self.bias
        return out

    @property
    def row_work(self) -> int:
        """Multiply-adds for one token."""
        k = self.gate.k if self.gate is not None else self.experts.count
        return k * _expert_work(self.experts) + (_expert_work(self.shared) if self.shared else 0)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        if self.gate is not None:
            for name, kind, weight in self.gate.weights():
                yield f"router.{name}", kind, weight
        for name, kind, weight in _expert_weights(self.experts, "experts"):
            yield f"experts.{name}", kind, weight
        if self.shared is not None:
            for name, kind, weight in _expert_weights(self.shared, "shared experts"):
                yield f"shared.{name}", kind, weight
        if self.shared_gate is not None:
            for name, kind, weight in self.shared_gate.weights():
                yield f"shared_gate.{name}", kind, weight
        if self.bias is not None:
            yield "bias", "experts", self.bias


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
