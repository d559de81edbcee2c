"""What happens to routing decisions in a forward pass: replayed, changed, recorded, counted.

`model.record()` and `model.intervene()` push a hook for the running thread (a context variable, so
that several threads can use one model, each with its own hooks). A pass without hooks has no
`RoutingPass` at all and costs nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from .counters import Counters
from .intervention import Intervention, Steering
from .ops import Assignment
from .ops.router_rules import margins_of, selection_scores
from .passes import Pass
from .record import Record

if TYPE_CHECKING:
    from .nn.batch import Batch
    from .nn.kv_cache import KVCache
    from .nn.moe import MoE

Floats = npt.NDArray[np.float32]


class Recorder:
    """Fills one record from the passes of one model."""

    def __init__(self, record: Record, policy: str, logits: bool, margins: bool) -> None:
        self.record = record
        self.logits = logits
        self.margins = margins
        self._policy = policy
        # A sequence that goes on keeps its number; weak, so that recording holds no caches.
        self._numbers: WeakKeyDictionary[KVCache, int] = WeakKeyDictionary()
        self._next = 0

    def begin(
        self, batch: "Batch", intervention: Intervention | None, replay: Record | None
    ) -> Pass:
        """Room for the tokens of `batch`; ValueError if they are routed by another policy."""
        if replay is not None:
            policy = replay.policy
        else:
            policy = self._policy + (f"; {intervention}" if intervention is not None else "")
        self.record.require_policy(policy)
        for sequence in batch.sequences:
            if sequence not in self._numbers:
                self._numbers[sequence] = self._next
                self._next += 1
        numbers = [self._numbers[sequence] for sequence in batch.sequences]
        lengths = [rows.stop - rows.start for rows in batch.rows]
        return Pass(
            np.repeat(np.array(numbers, np.int32), lengths),
            batch.positions.astype(np.int32),
            batch.ids.astype(np.int32),
            policy,
        )

    def add(
        self, part: Pass, moe: "MoE", layer: int, chosen: Assignment, logits: Floats | None
    ) -> None:
        """One layer's choice."""
        margins = None
        if self.margins and logits is not None and moe.gate is not None:
            rule = moe.gate.rule
            scores = selection_scores(logits, rule.get("score", "softmax"), rule.get("select_bias"))
            margins = margins_of(scores, chosen.experts)
        part.add(layer, chosen, logits if self.logits else None, margins)


Action: TypeAlias = Recorder | Intervention | Counters


@dataclass(frozen=True, slots=True)
class Hook:
    """One open `with` block: whose model it is about and what it does."""

    model: object
    action: Action


_hooks: ContextVar[tuple[Hook, ...]] = ContextVar("moekit routing hooks", default=())


@contextmanager
def pushed(model: object, action: Action) -> Iterator[None]:
    """Keep a hook for `model` during the block, in this thread."""
    token = _hooks.set((*_hooks.get(), Hook(model, action)))
    try:
        yield
    finally:
        _hooks.reset(token)


def open_intervention(model: object) -> Intervention:
    """What the open blocks of this thread change together; empty if nothing."""
    whole = Intervention()
    for hook in _hooks.get():
        if hook.model is model and isinstance(hook.action, Intervention):
            whole = whole.then(hook.action)
    return whole


class RoutingPass:
    """Stands between a layer's router and its experts during one pass."""

    __slots__ = (
        *("_batch", "_counters", "_intervention", "_logits", "_passes", "_recorders", "_replay"),
        "_steering",
    )

    def __init__(
        self,
        actions: list[Action],
        intervention: Intervention | None,
        replay: Record | None,
        batch: "Batch",
    ) -> None:
        self._recorders = [action for action in actions if isinstance(action, Recorder)]
        self._counters = [action for action in actions if isinstance(action, Counters)]
        for counters in self._counters:
            counters.begin_pass()
        self._replay = None if replay is None else Replay(replay, batch)
        self._steering = None if intervention is None else Steering(intervention, batch)
        self._batch = batch
        self._logits = any(recorder.logits or recorder.margins for recorder in self._recorders)
        self._passes = [recorder.begin(batch, intervention, replay) for recorder in self._recorders]

    def assign(self, moe: "MoE", x: Floats, layer: int) -> Assignment:
        """The experts of each row of `x` in the model's layer number `layer`."""
        logits: Floats | None = None
        if self._logits or self._steering is not None:
            logits = moe.logits(x)
        if self._replay is not None:
            chosen = self._replay.assignment(layer, moe, x)
        elif self._steering is not None:
            chosen = self._steering.route(moe, x, logits, layer)
        elif logits is not None:
            chosen = moe.route(x, logits, self._batch.ids)
        else:
            chosen = moe.assign(x, self._batch.ids)
        if self._replay is None:
            chosen = moe.limited(chosen, self._batch.rows)
        for recorder, part in zip(self._recorders, self._passes, strict=True):
            recorder.add(part, moe, layer, chosen, logits)
        for counters in self._counters:
            counters.add((layer, chosen.experts))
        return chosen

    def finish(self) -> None:
        """The pass is complete: hand the tokens over. An interrupted pass leaves no trace."""
        for recorder, part in zip(self._recorders, self._passes, strict=True):
            recorder.record.add(part)
        for counters in self._counters:
            counters.end_pass(len(self._batch.ids))
        if self._steering is not None:
            self._steering.finish()


class CountingPass:
    """A `RoutingPass` that counts and does nothing else: one reference kept a layer."""

    __slots__ = ("_add", "_counters", "_ids", "_rows")

    def __init__(self, counters: Counters, batch: "Batch") -> None:
        self._counters = counters
        self._add = counters.begin_pass()
        self._ids = batch.ids
        self._rows = batch.rows

    def assign(self, moe: "MoE", x: Floats, layer: int) -> Assignment:
        """The router's own choice."""
        chosen = moe.assign(x, self._ids)
        if moe.capacity is not None:
            chosen = moe.limited(chosen, self._rows)
        self._add((layer, chosen.experts))
        return chosen

    def finish(self) -> None:
        """The pass is complete."""
        self._counters.end_pass(len(self._ids))


def routing_pass(
    model: object, batch: "Batch", replay: Record | None
) -> RoutingPass | CountingPass | None:
    """What the open hooks of this thread ask for, or None."""
    hooks = _hooks.get()
    if replay is None:
        # What should cost nothing takes the shortest way: no hook, or one that counts.
        if not hooks:
            return None
        if len(hooks) == 1 and hooks[0].model is model and type(hooks[0].action) is Counters:
            return CountingPass(hooks[0].action, batch)
    actions = [hook.action for hook in hooks if hook.model is model]
    watching: list[Action] = []
    intervention: Intervention | None = None
    for action in actions:
        if not isinstance(action, Intervention):
            watching.append(action)
        elif not action.empty:
            intervention = action if intervention is None else intervention.then(action)
    if replay is None and intervention is None:
        # An empty intervention alone leaves the short way open.
        if not watching:
            return None
        if len(watching) == 1 and isinstance(watching[0], Counters):
            return CountingPass(watching[0], batch)
    if replay is not None and intervention is not None:
        raise ValueError("[forward] routing= inside model.intervene(); one of the two is required")
    return RoutingPass(watching, intervention, replay, batch)


class Replay:
    """The rows of a record that belong to the tokens of one pass."""

    def __init__(self, record: Record, batch: "Batch") -> None:
        self._experts, self._weights = record.experts, record.weights_or_none
        self._record = record
        lengths = [rows.stop - rows.start for rows in batch.rows]
        numbers = np.arange(len(lengths), dtype=np.int32) + batch.first_number
        sequences = np.repeat(numbers, lengths)
        positions = batch.positions.astype(np.int32)
        if np.array_equal(sequences, record.sequences) and np.array_equal(
            positions, record.positions
        ):
            return
        places = {
            key: row
            for row, key in enumerate(
                zip(record.sequences.tolist(), record.positions.tolist(), strict=True)
            )
        }
        rows = []
        for key in zip(sequences.tolist(), positions.tolist(), strict=True):
            if key not in places:
                raise ValueError(
                    f"[forward] the record has no token {key[1]} of sequence {key[0]}; "
                    f"it holds {len(record)} tokens"
                )
            rows.append(places[key])
        self._experts = self._experts[rows]
        if self._weights is not None:
            self._weights = self._weights[rows]

    def assignment(self, layer: int, moe: "MoE", x: Floats) -> Assignment:
        """The recorded choice; where only experts were recorded, the gate weighs them."""
        place = self._record.layer_index(layer)
        experts = np.ascontiguousarray(self._experts[:, place])
        if self._weights is None:
            if int(experts.max(initial=-1)) >= moe.count:
                raise ValueError(
                    f"[forward] the record has expert {experts.max()} in layer {layer}; "
                    f"there are {moe.count}"
                )
            return moe.weigh(x, experts)
        on_input = self._record.on_input_of(place)
        if on_input is None:
            on_input = moe.gate is not None and moe.gate.weighs_input
        return Assignment(
            experts,
            np.ascontiguousarray(self._weights[:, place]),
            expert_count=max(moe.count, int(experts.max(initial=-1)) + 1),
            on_input=on_input,
        )
