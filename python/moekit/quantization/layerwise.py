"""Running a model layer by layer over some text, and seeing what goes into its weights.

Only one layer's inputs are in memory at a time, which is what lets calibration work on models that
fill the memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from .. import ops
from ..nn import MLP, Batch, KVCache, Linear, Model, MoE
from ..nn.block import Layer
from ..nn.parts import rebuilt
from ..nn.types import Floats, Tally
from ..ops import Assignment, Experts, PackedWeight

Texts: TypeAlias = str | Sequence[str] | Sequence[Sequence[int]] | npt.NDArray[Any]
Doubles: TypeAlias = npt.NDArray[np.float64]
# Rows that go through a layer at once.
_ROWS = 4096
WINDOW = 512


def windows_of(model: Model, texts: Texts, window: int = WINDOW) -> list[npt.NDArray[np.int32]]:
    """Texts (or lists of ids) as sequences of at most `window` tokens; those of one are dropped.

    ValueError if nothing is left, or a text comes without a tokenizer.
    """
    if window < 2:
        raise ValueError(f"[calibration] window {window}; 2 tokens at least are required")
    given: list[Any] = [texts] if isinstance(texts, str) else list(texts)
    if given and isinstance(given[0], (int, np.integer)):
        given = [given]
    found = []
    for text in given:
        if isinstance(text, str):
            if model.tokenizer is None:
                raise ValueError("[calibration] text for a model without a tokenizer; ids are")
            ids = np.array(model.tokenizer.encode(text), np.int32)
        else:
            ids = np.array(text, np.int32)
        if ids.ndim != 1 or (ids.size and not 0 <= ids.min() <= ids.max() < model.vocab_size):
            raise ValueError(
                f"[calibration] ids {list(ids.shape)}; [T] of 0 to {model.vocab_size - 1} is "
                "required"
            )
        found += [ids[i : i + window] for i in range(0, len(ids), window)]
    found = [ids for ids in found if len(ids) > 1]
    if not found:
        raise ValueError("[calibration] no text; at least two tokens are required")
    return found


class Stream:
    """Hidden states [T, H] of all windows between two layers."""

    def __init__(self, model: Model, windows: Sequence[npt.NDArray[np.int32]]) -> None:
        self._rows = [block.cache_rows for block in model.layers]
        self._chunks: list[list[npt.NDArray[np.int32]]] = [[]]
        for window in windows:
            if self._chunks[-1] and sum(map(len, self._chunks[-1])) + len(window) > _ROWS:
                self._chunks.append([])
            self._chunks[-1].append(window)
        self.states = [model.embed(np.concatenate(chunk)) for chunk in self._chunks]

    @property
    def tokens(self) -> int:
        """Rows of all windows."""
        return sum(map(len, self.states))

    def through(self, block: Layer, layer: int) -> list[Floats]:
        """The states behind a block, for those in front of it as they stand."""
        found = []
        for chunk, x in zip(self._chunks, self.states, strict=True):
            caches = [KVCache(self._rows) for _ in chunk]
            batch = Batch([len(ids) for ids in chunk], caches, np.concatenate(chunk))
            found.append(block(x.copy(), batch, layer))
        return found


# -- seeing the inputs ---------------------------------------------------------------------

T = TypeVar("T")


class _Tap:
    """What all taps have: they stand for a part, share its attributes, and note inputs."""

    __slots__ = ()

    @classmethod
    def on(cls: type[T], part: Any, sink: Any) -> T:
        tap = cls.__new__(cls)
        for kind in type(part).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(part, name):
                    object.__setattr__(tap, name, getattr(part, name))
        object.__setattr__(tap, "sink", sink)
        return tap


class _LinearTap(_Tap, Linear):
    __slots__ = ("sink",)
    sink: "LinearInputs"

    def __call__(self, x: Floats) -> Floats:
        self.sink.add(x)
        return super().__call__(x)


class _MoETap(_Tap, MoE):
    __slots__ = ("sink",)
    sink: "ExpertInputs"

    def apply(
        self, x: Floats, assignment: Assignment, tally: Tally | None = None, layer: int = 0
    ) -> Floats:
        self.sink.add(x, assignment)
        return super().apply(x, assignment, tally, layer)


class _MLPTap(_Tap, MLP):
    __slots__ = ("sink",)
    sink: "ExpertInputs"

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        everyone = Assignment(np.zeros((len(x), 1), np.int32), np.ones((len(x), 1), np.float32))
        self.sink.add(x, everyone)
        return super().__call__(x, batch, layer)


@dataclass(slots=True)
class LinearInputs:
    """H = sum of x xᵀ over the inputs of a linear layer, float64 [K, K]."""

    hessian: Doubles
    rows: int = 0

    def add(self, x: Floats) -> None:
        """More inputs [T, K]."""
        self.hessian += gram(x)
        self.rows += len(x)


@dataclass(slots=True)
class ExpertInputs:
    """The inputs of a feed-forward layer and where each went."""

    parts: list[tuple[Floats, Assignment]] = field(default_factory=list)

    def add(self, x: Floats, assignment: Assignment) -> None:
        """Rows [T, H] and their experts."""
        self.parts.append((x, assignment))

    @property
    def x(self) -> Floats:
        """Float32 [T, H]."""
        return np.concatenate([x for x, _ in self.parts])

    def counts(self, experts: int) -> npt.NDArray[np.int64]:
        """Int64 [E]: rows that each expert serves."""
        total = np.zeros(experts, np.int64)
        for _, assignment in self.parts:
            ids = assignment.experts[(assignment.experts >= 0) & (assignment.experts < experts)]
            total += np.bincount(ids, minlength=experts)
        return total

    def rows_of(self, expert: int) -> tuple[Floats, Floats]:
        """(inputs [n, H], weights [n]) of one expert; a router's scale on inputs is in both."""
        rows, weights = [], []
        for x, assignment in self.parts:
            token, slot = np.nonzero(assignment.experts == expert)
            weight = assignment.weights[token, slot]
            chosen = x[token]
            if assignment.on_input:
                chosen = chosen * weight[:, None]
                weight = np.ones_like(weight)
            rows.append(chosen)
            weights.append(weight)
        return np.concatenate(rows), np.concatenate(weights)


def tapped(block: Layer) -> tuple[Layer, dict[int, LinearInputs], dict[int, ExpertInputs]]:
    """A copy of the layer that notes its inputs, and what it notes: by `id` of a linear layer's
    weight, and by `id` of a feed-forward part."""
    linears: dict[int, LinearInputs] = {}
    feeds: dict[int, ExpertInputs] = {}

    def tap(_: str, part: Any) -> Any:
        if type(part) in (MoE, MLP):
            feeds[id(part)] = ExpertInputs()
            return (_MoETap if type(part) is MoE else _MLPTap).on(part, feeds[id(part)])
        if type(part) is Linear:
            sink = LinearInputs(np.zeros((part.cols, part.cols)))
            linears[id(part.weight)] = sink
            return _LinearTap.on(part, sink)
        return part

    return rebuilt(block, tap), linears, feeds


def feed_forwards(part: Any) -> list[MoE | MLP]:
    """The mixtures and dense feed-forward layers of a part, shared experts inside of theirs."""
    found: list[MoE | MLP] = []

    def look(_: str, value: Any) -> Any:
        if isinstance(value, (MoE, MLP)):
            found.append(value)
        return value

    rebuilt(part, look)
    return found


def gram(x: Floats, weights: Floats | None = None) -> Doubles:
    """Sum of w² x xᵀ over the rows, float64 [K, K]."""
    scaled = x if weights is None else x * weights[:, None]
    total = np.zeros((x.shape[1], x.shape[1]))
    for begin in range(0, len(x), _ROWS):
        part = scaled[begin : begin + _ROWS]
        total += part.T @ part
    return total


def hidden_of(
    experts: Experts,
    expert: int,
    x: Floats,
    identity: Sequence[PackedWeight],
    banks: Mapping[str, PackedWeight],
) -> Floats:
    """What expert `expert` multiplies with its down matrix, [n, F], for inputs [n, H].

    `identity` (see `identity_of`) stands for down, so that activation, biases and limits are those
    of the kernel. `banks` holds a gate and an up to use in the place of the experts' own.
    """
    if not len(x):
        return np.zeros((0, experts.inter), np.float32)
    everyone = Assignment(np.zeros((len(x), 1), np.int32), np.ones((len(x), 1), np.float32))
    gate, up = banks.get("gate", experts.gate), banks.get("up", experts.up)
    biases: dict[str, Any] = {
        name: None if bias is None else bias[expert : expert + 1]
        for name, bias in (("gate_bias", experts.gate_bias), ("up_bias", experts.up_bias))
    }
    pieces = []
    for piece in identity:
        one = Experts(
            None if gate is None else PackedWeight.gather([(gate, expert)]),
            PackedWeight.gather([(up, expert)]),
            piece,
            activation=experts.activation,
            limit=experts.limit,
            **biases,
        )
        pieces.append(ops.moe_ffn(x, everyone, one, compute="exact"))
    return np.concatenate(pieces, axis=1)[:, : experts.inter]


def identity_of(experts: Experts) -> list[PackedWeight]:
    """The rows of the identity [F, F], H at a time: each [1, H, F], as a down matrix has to be."""
    inter, hidden = experts.inter, experts.hidden
    pieces = []
    for begin in range(0, inter, hidden):
        rows = np.zeros((1, hidden, inter), np.float32)
        count = min(hidden, inter - begin)
        rows[0, np.arange(count), begin + np.arange(count)] = 1.0
        pieces.append(ops.pack(rows, format="f32"))
    return pieces
