"""What happens to routing decisions in a forward pass: replayed, changed, recorded, counted.

`model.record()` and `model.intervene()` open a block for the running thread (a context variable, so
that several threads can use one model, each with its own blocks). A pass outside of blocks has no
`Watch` and no `RoutingPass` at all and costs nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from .counters import Counters
from .intervention import Intervention, Steering
from .ops import Assignment
from .passes import Pass, rank_margins
from .record import Record

if TYPE_CHECKING:
    from .nn.batch import Batch
    from .nn.kv_cache import KVCache
    from .nn.moe import MoE

Floats = npt.NDArray[np.float32]

# Logits of a layer that wait to be ranked with those of other passes.
_KEPT_LOGITS = 1 << 16


class Recorder:
    """Fills one record from the passes of one model."""

    def __init__(
        self,
        record: Record,
        policy: str,
        *,
        logits: bool,
        rules: Mapping[int, Mapping[str, Any]] | None,
    ) -> None:
        """`rules`: by layer, what margins are made of; None where none are wanted."""
        self.record = record
        self.logits = logits
        self.rules = rules
        self._policy = policy
        # A sequence that goes on keeps its number; weak, so that recording holds no caches.
        self._numbers: WeakKeyDictionary[KVCache, int] = WeakKeyDictionary()
        self._next = 0
        self._running = policy

    def begin_pass(self, intervention: Intervention | None, replay: Record | None) -> None:
        """ValueError if the tokens of the pass to come are routed by another policy."""
        if replay is not None:
            self._running = replay.policy
        elif intervention is not None:
            self._running = f"{self._policy}; {intervention}"
        else:
            self._running = self._policy
        self.record.require_policy(self._running)

    def end_pass(self, batch: "Batch") -> None:
        """The pass over `batch` is complete."""
        choices = batch.choices
        assert choices is not None
        looked = batch.routing.looked if batch.routing is not None else {}
        logits, margins = looked, {}
        if self.rules is not None and not self.logits:
            # Small ones are ranked many passes at a time, large ones are not kept for that.
            large = {n for n, values in looked.items() if values.size > _KEPT_LOGITS}
            logits = {n: values for n, values in looked.items() if n not in large}
            margins = {n: rank_margins(self.rules[n], looked[n], choices[n].experts) for n in large}
        self.record.add(
            Pass(
                [self._number(sequence) for sequence in batch.sequences],
                [rows.stop - rows.start for rows in batch.rows],
                batch.positions,
                batch.ids.copy(),  # the caller's own array, perhaps
                self._running,
                tuple(choices),
                [made.experts for made in choices.values()],
                [made.weights for made in choices.values()],
                [n for n, made in choices.items() if made.on_input],
                logits,
                margins,
                self.rules or {},
            )
        )

    def _number(self, sequence: "KVCache") -> int:
        number = self._numbers.get(sequence)
        if number is None:
            number = self._numbers[sequence] = self._next
            self._next += 1
        return number


Action: TypeAlias = Recorder | Counters | Intervention


class Watch:
    """What the open blocks of a thread do, together, with the passes of one model."""

    __slots__ = ("actions", "around", "counters", "idle", "intervention", "looks", "recorders")

    def __init__(self, actions: Sequence[Action] = ()) -> None:
        self.actions = actions
        self.recorders = [action for action in actions if isinstance(action, Recorder)]
        #: Does a record want the routers' logits?
        self.looks = any(one.logits or one.rules is not None for one in self.recorders)
        #: What changes, outer blocks first; None if nothing does.
        self.intervention: Intervention | None = None
        for action in actions:
            if isinstance(action, Intervention) and not action.empty:
                outer: Intervention | None = self.intervention
                self.intervention = action if outer is None else outer.then(action)
        every = [action for action in actions if isinstance(action, Counters)]
        #: Who counts, the tallies that wait for it, and the counters of blocks around.
        self.counters: Counters | None = every[-1] if every else None
        self.idle = None if self.counters is None else self.counters.idle
        self.around = every[:-1]


# By model. Made when a block opens, so that a pass finds what it needs ready.
_watches: ContextVar[Mapping[object, Watch]] = ContextVar(
    "moekit routing", default=MappingProxyType({})
)
_NOTHING = Watch()


@contextmanager
def pushed(model: object, action: Action) -> Iterator[None]:
    """Let `action` work on `model` during the block, in this thread."""
    watches = _watches.get()
    outer = watches.get(model, _NOTHING).actions
    token = _watches.set({**watches, model: Watch((*outer, action))})
    try:
        yield
    finally:
        _watches.reset(token)


def is_watched(model: object) -> bool:
    """Whether a block of this thread records or changes the routing of `model`."""
    return model in _watches.get()


def open_intervention(model: object) -> Intervention:
    """What the open blocks of this thread change together; empty if nothing."""
    watch = _watches.get().get(model)
    whole = Intervention()
    for action in () if watch is None else watch.actions:
        if isinstance(action, Intervention):
            whole = whole.then(action)
    return whole


class RoutingPass:
    """Stands in the place of a layer's router during one pass."""

    __slots__ = ("_batch", "_looks", "_replay", "_steering", "looked")

    def __init__(
        self,
        looks: bool,
        intervention: Intervention | None,
        replay: Record | None,
        batch: "Batch",
    ) -> None:
        self._replay = None if replay is None else Replay(replay, batch)
        self._steering = None if intervention is None else Steering(intervention, batch)
        self._batch = batch
        self._looks = looks
        #: The routers' logits by layer, where somebody wants them.
        self.looked: dict[int, Floats] = {}

    def assign(self, moe: "MoE", x: Floats, layer: int) -> Assignment:
        """The experts of each row of `x` in the model's layer number `layer`."""
        logits: Floats | None = None
        if self._looks or self._steering is not None:
            logits = moe.logits(x)
        if self._looks and logits is not None:
            self.looked[layer] = logits
        if self._replay is not None:
            return self._replay.assignment(layer, moe, x)
        if self._steering is not None:
            chosen = self._steering.route(moe, x, logits, layer)
        else:
            chosen = moe.route(x, logits, self._batch.ids)
        return moe.limited(chosen, self._batch.rows)

    def finish(self) -> None:
        """The pass is complete."""
        if self._steering is not None:
            self._steering.finish()


def begin_pass(model: object, batch: "Batch", replay: Record | None) -> None:
    """Give the batch what the open blocks of this thread ask for.

    Looking at choices leaves layers to their own routers; only a replay, an intervention and the
    wish for logits put something in their place.
    """
    watch = _watches.get().get(model)
    if watch is None:
        if replay is None:
            return
        watch = _NOTHING
    batch.watch = watch
    intervention = watch.intervention
    if replay is not None:
        if not isinstance(replay, Record):
            raise TypeError(f"[forward] routing is {type(replay).__name__}; a Record is required")
        if intervention is not None:
            raise ValueError(
                "[forward] routing= inside model.intervene(); one of the two is required"
            )
    if watch.recorders:
        batch.choices = {}
        for recorder in watch.recorders:
            recorder.begin_pass(intervention, replay)
    if watch.looks or replay is not None or intervention is not None:
        batch.routing = RoutingPass(watch.looks, intervention, replay, batch)
    if watch.idle is not None:
        try:
            batch.tally = watch.idle.pop()
        except IndexError:
            assert watch.counters is not None
            batch.tally = watch.counters.new_tally()


def end_pass(batch: "Batch") -> None:
    """The pass is complete: what it chose is kept. An interrupted pass leaves no trace."""
    watch = batch.watch
    if watch is None:
        return
    tally = batch.tally
    if tally is not None and watch.idle is not None:
        for counters in watch.around:
            counters.add_running(tally, len(batch.ids))
        tally.finish(len(batch.ids))
        watch.idle.append(tally)
    for recorder in watch.recorders:
        recorder.end_pass(batch)
    if batch.routing is not None:
        batch.routing.finish()


def drop_pass(batch: "Batch") -> None:
    """The pass ends here and counts for nothing."""
    watch, tally = batch.watch, batch.tally
    if watch is not None and watch.idle is not None and tally is not None:
        tally.discard()
        watch.idle.append(tally)


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
