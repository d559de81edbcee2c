"""What happens to routing decisions in a forward pass: replayed, changed, recorded.

`model.record()` and `model.intervene()` push a hook for the running thread (a context variable, so
that several threads can use one model, each with its own hooks). A pass without hooks has no
`RoutingPass` at all and costs nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from .intervention import Intervention
from .ops import Assignment
from .record import Pass, Record

if TYPE_CHECKING:
    from .nn.batch import Batch
    from .nn.kv_cache import KVCache
    from .nn.moe import MoE, RouterFunction

Floats = npt.NDArray[np.float32]


class Recorder:
    """Fills one record from the passes of one model."""

    def __init__(self, record: Record, logits: bool) -> None:
        self.record = record
        self.logits = logits
        # A sequence that goes on keeps its number; weak, so that recording holds no caches.
        self._numbers: WeakKeyDictionary[KVCache, int] = WeakKeyDictionary()
        self._next = 0

    def begin(self, batch: "Batch") -> Pass:
        """Room for the tokens of `batch`."""
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
        )


@dataclass(frozen=True, slots=True)
class Hook:
    """One open `with` block: whose model it is about and what it does."""

    model: object
    action: Recorder | Intervention


_hooks: ContextVar[tuple[Hook, ...]] = ContextVar("moekit routing hooks", default=())


@contextmanager
def pushed(model: object, action: Recorder | Intervention) -> Iterator[None]:
    """Keep a hook for `model` during the block, in this thread."""
    token = _hooks.set((*_hooks.get(), Hook(model, action)))
    try:
        yield
    finally:
        _hooks.reset(token)


class RoutingPass:
    """Stands between a layer's router and its experts during one pass."""

    __slots__ = ("_batch", "_intervention", "_passes", "_recorders", "_replay")

    def __init__(
        self,
        recorders: list[Recorder],
        intervention: Intervention | None,
        replay: "Replay | None",
        batch: "Batch",
    ) -> None:
        self._recorders = recorders
        self._intervention = intervention
        self._replay = replay
        self._batch = batch
        self._passes = [recorder.begin(batch) for recorder in recorders]

    def assign(self, moe: "MoE", x: Floats, layer: int) -> Assignment:
        """The experts of each row of `x` in the model's layer number `layer`."""
        logits: Floats | None = None
        if self._replay is not None:
            assignment = self._replay.assignment(layer)
        else:
            if moe.gate is not None:
                logits = moe.gate.logits(x)
            if self._intervention is not None:
                assignment = self._intervention.route(moe, x, logits, layer, self._batch.ids)
            elif moe.router is moe.gate:
                assert logits is not None
                assignment = moe.gate.route(logits, self._batch.ids)
            else:
                assignment = moe.ask(cast("RouterFunction", moe.router), x, logits)
        for recorder, part in zip(self._recorders, self._passes, strict=True):
            part.add(assignment, logits if recorder.logits else None)
        return assignment

    def finish(self) -> None:
        """The pass is complete: hand the tokens over. An interrupted pass leaves no trace."""
        for recorder, part in zip(self._recorders, self._passes, strict=True):
            recorder.record.add(part)


def routing_pass(model: object, batch: "Batch", replay: Record | None) -> RoutingPass | None:
    """What the open hooks of this thread ask for, or None."""
    mine = [hook.action for hook in _hooks.get() if hook.model is model]
    if replay is None and not mine:
        return None
    recorders = [action for action in mine if isinstance(action, Recorder)]
    intervention: Intervention | None = None
    for action in mine:
        if isinstance(action, Intervention):
            intervention = action if intervention is None else intervention.then(action)
    if intervention is not None and intervention.empty:
        intervention = None
    if replay is not None and intervention is not None:
        raise ValueError("[forward] routing= inside model.intervene(); one of the two is required")
    # An empty intervention alone leaves the short way open.
    if replay is None and intervention is None and not recorders:
        return None
    played = None if replay is None else Replay(replay, batch)
    return RoutingPass(recorders, intervention, played, batch)


class Replay:
    """The rows of a record that belong to the tokens of one pass."""

    def __init__(self, record: Record, batch: "Batch") -> None:
        self._experts, self._weights = record.experts, record.weights
        self._record = record
        lengths = [rows.stop - rows.start for rows in batch.rows]
        sequences = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
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
        self._experts, self._weights = self._experts[rows], self._weights[rows]

    def assignment(self, layer: int) -> Assignment:
        place = self._record.layer_index(layer)
        experts = np.ascontiguousarray(self._experts[:, place])
        return Assignment(experts, np.ascontiguousarray(self._weights[:, place]))
