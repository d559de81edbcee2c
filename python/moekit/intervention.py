"""Changes to routing while a model runs, layer by layer, for all sequences or for one.

`wishes.py` reads what a caller asks for; here it is applied.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias
from zlib import crc32

import numpy as np
import numpy.typing as npt

from .balance import BiasController
from .ops import Assignment
from .record_edit import swapped

if TYPE_CHECKING:
    from .nn.batch import Batch
    from .nn.moe import MoE
    from .nn.router import Router

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.int32]
# (x [T, H], logits [T, E]) -> an Assignment, or changed logits that the layer's rule then uses.
RouterFunction: TypeAlias = Callable[[Floats, Any], Assignment | npt.NDArray[Any]]

# Added to the selection score of a forced expert: above every score, and two of them do not
# overflow where groups add their best two.
FORCED = np.float32(1e30)
# A policy names single values up to here, and a checksum of more.
_NAMED = 8


@dataclass(frozen=True, slots=True)
class Change:
    """What changes in one layer; None is nothing. Applied in the order of the fields."""

    #: Sees the logits first; chooses, or changes them.
    router: RouterFunction | None = None
    #: [E], added to the logits.
    bias: Floats | None = None
    #: Divides the logits.
    temperature: float | None = None
    #: [E], experts that do not exist.
    mask: Flags | None = None
    #: [E], experts that every token uses.
    force: Flags | None = None
    #: Selects and never weighs, and moves with every pass.
    controller: BiasController | None = None
    k: int | None = None
    #: int32 [E], the expert that serves in the place of each.
    substitute: Ids | None = None
    #: Chosen experts with a smaller share of the token's weights are left out.
    threshold: float | None = None

    def then(self, inner: "Change") -> "Change":
        """This change with an inner block's on top."""

        def both(name: str, combine: Callable[[Any, Any], Any]) -> Any:
            a, b = getattr(self, name), getattr(inner, name)
            return b if a is None else a if b is None else combine(a, b)

        return Change(
            inner.router or self.router,
            both("bias", lambda a, b: a + b),
            both("temperature", lambda a, b: a * b),
            both("mask", lambda a, b: a | b),
            both("force", lambda a, b: a | b),
            inner.controller or self.controller,
            self.k if inner.k is None else inner.k,
            both("substitute", lambda a, b: b[a]),
            both("threshold", max),
        )

    def route(
        self, moe: "MoE", x: Floats, logits: Floats | None, ids: Ids, layer: int
    ) -> Assignment:
        """The changed choice for rows of `x` with the gate's logits and token ids."""
        if self.router is not None:
            answer = self.router(x, None if logits is None else logits.copy())
            if isinstance(answer, Assignment):
                return self._finish(moe.checked(answer, len(x)))
            logits = _changed_logits(answer, logits, layer)
        if logits is not None:
            if self.bias is not None:
                logits = logits + self.bias
            if self.temperature is not None:
                logits = logits / np.float32(self.temperature)
        gate = moe.gate
        if gate is None or logits is None or moe.router is not gate:
            if logits is not None and self.mask is not None:
                logits = np.where(self.mask, np.float32(-np.inf), logits)
            return self._finish(moe.ask(moe.router, x, logits))
        return self._finish(gate.route(logits, ids, **self._rule_changes(gate)))

    def _rule_changes(self, gate: "Router") -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if self.mask is not None:
            changes["mask"] = self.mask
        if self.k is not None:
            changes["k"] = self.k
        bias = gate.rule.get("select_bias")
        if self.controller is not None:
            moved = self.controller.bias
            changes["select_bias"] = bias = moved if bias is None else bias + moved
        if self.force is not None:
            lift = np.where(self.force, FORCED, np.float32(0))
            changes["select_bias"] = lift if bias is None else lift + bias
        return changes

    def _finish(self, chosen: Assignment) -> Assignment:
        """Substitutes and the threshold, which work on what was chosen."""
        if self.substitute is None and self.threshold is None:
            return chosen
        experts, weights = chosen.experts.copy(), chosen.weights.copy()
        if self.substitute is not None:
            moved = np.flatnonzero(self.substitute != np.arange(len(self.substitute)))
            swap = {int(e): int(self.substitute[e]) for e in moved}
            experts, weights = swapped(experts, weights, swap)
        if self.threshold is not None:
            total = np.zeros(len(weights), np.float32)
            for slot in range(weights.shape[1]):
                total += weights[:, slot]
            # Comparing with NaN is false: a damaged row keeps its experts.
            small = weights < np.float32(self.threshold) * total[:, None]
            experts[small], weights[small] = -1, 0
        return Assignment(
            experts, weights, expert_count=chosen.expert_count, on_input=chosen.on_input
        )

    def __str__(self) -> str:
        return ", ".join(
            f"{f.name} {_text(getattr(self, f.name))}"
            for f in fields(self)
            if getattr(self, f.name) is not None
        )


def _changed_logits(answer: Any, logits: Floats | None, layer: int) -> Floats:
    changed = np.ascontiguousarray(answer, np.float32)
    if logits is None or changed.shape != logits.shape:
        wanted = "" if logits is None else f" or logits {logits.shape}"
        raise ValueError(
            f"[intervene] the router of layer {layer} gave shape {changed.shape}; "
            f"an Assignment{wanted} is required"
        )
    return changed


def _text(value: Any) -> str:
    """A value as a policy names it: short, the same for the same value."""
    if isinstance(value, BiasController):
        return f"controller gamma={value.gamma:g}"
    if callable(value):
        code = getattr(value, "__code__", None)
        mark = "" if code is None else f"#{crc32(code.co_code + repr(code.co_consts).encode()):08x}"
        return f"{getattr(value, '__qualname__', type(value).__name__)}{mark}"
    if not isinstance(value, np.ndarray):
        return f"{value:g}"
    if value.dtype == np.bool_:
        named = [str(e) for e in np.flatnonzero(value)]
    elif value.dtype == np.int32:
        named = [f"{e}->{to}" for e, to in enumerate(value) if e != to]
    else:
        named = [f"{e}:{value[e]:g}" for e in np.flatnonzero(value)]
    if len(named) > _NAMED:
        return f"{len(named)} values #{crc32(value.tobytes()):08x}"
    return "{" + ", ".join(named) + "}"


Changes: TypeAlias = Mapping[int, Change]


@dataclass(frozen=True)
class Intervention:
    """Per layer (by the model's own number) what changes; `wishes.intervention` builds it.

    `requests[i]` are the changes of the i-th sequence of a call on top of `layers`; empty where
    all sequences are treated alike.
    """

    layers: Changes = field(default_factory=dict)
    requests: tuple[Changes, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.layers and not any(self.requests)

    @property
    def controllers(self) -> dict[int, BiasController]:
        """The bias controllers that `balance=` started, by layer."""
        found = {n: change.controller for n, change in self.layers.items()}
        return {n: controller for n, controller in found.items() if controller is not None}

    def of_request(self, index: int) -> Changes:
        """All changes of one sequence."""
        return combined(self.layers, self.requests[index]) if self.requests else self.layers

    def then(self, inner: "Intervention") -> "Intervention":
        """This one with an inner block's on top; ValueError if they count requests differently."""
        counts = {len(one.requests) for one in (self, inner)} - {0}
        if len(counts) > 1:
            raise ValueError(
                f"[intervene] settings for {len(inner.requests)} requests inside of settings for "
                f"{len(self.requests)}; one number is required"
            )
        if not counts:
            return Intervention(combined(self.layers, inner.layers))
        every = range(counts.pop())
        # The inner block wins over the outer one's requests: all of it goes into the requests.
        return Intervention(
            {}, tuple(combined(self.of_request(i), inner.of_request(i)) for i in every)
        )

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        texts = [f"layer {n}: {change}" for n, change in sorted(self.layers.items())]
        for i, request in enumerate(self.requests):
            texts += [f"request {i}, layer {n}: {change}" for n, change in sorted(request.items())]
        return "; ".join(texts)


def combined(outer: Changes, inner: Changes) -> Changes:
    """Layer by layer, the inner changes on top."""
    both = dict(outer)
    for layer, change in inner.items():
        both[layer] = both[layer].then(change) if layer in both else change
    return both


class Steering:
    """An intervention at work in one pass: which rows of the batch follow which changes."""

    __slots__ = ("_batch", "_intervention", "_parts", "_served")

    def __init__(self, intervention: Intervention, batch: "Batch") -> None:
        self._intervention = intervention
        self._batch = batch
        self._parts: list[tuple[Changes, slice]] = []
        self._served: list[tuple[BiasController, Ids]] = []
        if not intervention.requests:
            return
        count = len(intervention.requests)
        for sequence, rows in zip(batch.sequences, batch.rows, strict=True):
            if sequence.request >= count:
                raise ValueError(
                    f"[intervene] there is a sequence {sequence.request} in the call; "
                    f"requests= has settings for {count}"
                )
            self._parts.append((intervention.of_request(sequence.request), rows))

    def route(self, moe: "MoE", x: Floats, logits: Floats | None, layer: int) -> Assignment:
        """The choice of one layer for all rows."""
        ids = self._batch.ids
        if not self._parts:
            return self._route(layer, self._intervention.layers, moe, x, logits, ids)
        answers = [
            self._route(
                layer, changes, moe, x[rows], None if logits is None else logits[rows], ids[rows]
            )
            for changes, rows in self._parts
        ]
        return answers[0] if len(answers) == 1 else _joined(answers, moe.count)

    def _route(
        self,
        layer: int,
        changes: Changes,
        moe: "MoE",
        x: Floats,
        logits: Floats | None,
        ids: Ids,
    ) -> Assignment:
        change = changes.get(layer)
        if change is None:
            return moe.route(x, logits, ids)
        chosen = change.route(moe, x, logits, ids, layer)
        if change.controller is not None:
            self._served.append((change.controller, chosen.experts))
        return chosen

    def finish(self) -> None:
        """Move the biases of the controllers by the load of the pass, once each."""
        loads: dict[int, tuple[BiasController, npt.NDArray[Any]]] = {}
        for controller, experts in self._served:
            count = np.bincount(experts[experts >= 0], minlength=len(controller.bias))
            before = loads.get(id(controller), (controller, 0))[1]
            loads[id(controller)] = controller, count + before
        for controller, load in loads.values():
            controller.update(load)


def _joined(parts: list[Assignment], expert_count: int) -> Assignment:
    k = max(part.experts.shape[1] for part in parts)
    tokens = sum(len(part) for part in parts)
    experts = np.full((tokens, k), -1, np.int32)
    weights = np.zeros((tokens, k), np.float32)
    row = 0
    for part in parts:
        stop = row + len(part)
        experts[row:stop, : part.experts.shape[1]] = part.experts
        weights[row:stop, : part.experts.shape[1]] = part.weights
        row = stop
    return Assignment(experts, weights, expert_count=expert_count, on_input=parts[0].on_input)
