"""Which experts every token went to: recorded, counted, saved, edited, replayed.

A record is a table of tokens by MoE layers by slots. The order [tokens, layers, K] is the one in
which serving engines return routed experts.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import FileError
from .ops import Assignment

if TYPE_CHECKING:
    import pandas as pd

    from .tokenizer import Tokenizer

VERSION = 1
# Arrays of the file; all but the first two may be missing.
_ARRAYS = ("experts", "weights", "layers", "num_experts", "sequences", "positions", "ids", "logits")

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


class Record:
    """Routing of some tokens: what `model.record()` fills and `model.forward(routing=)` replays.

    `experts` int32 [tokens, layers, K] (-1: none) and `weights` float32 of the same shape are in
    the order of the slots. `layers` [layers] are the model's own numbers, `num_experts` [layers]
    the experts each has. Token i is at place `positions[i]` of sequence `sequences[i]` and was
    read as `ids[i]` (-1: unknown). `logits` float32 [tokens, layers, E] or None.
    """

    def __init__(
        self,
        experts: npt.ArrayLike,
        weights: npt.ArrayLike,
        layers: npt.ArrayLike | None = None,
        *,
        num_experts: npt.ArrayLike | None = None,
        sequences: npt.ArrayLike | None = None,
        positions: npt.ArrayLike | None = None,
        ids: npt.ArrayLike | None = None,
        logits: npt.ArrayLike | None = None,
        texts: Sequence[str] | None = None,
        tokenizer: "Tokenizer | None" = None,
    ) -> None:
        table = np.ascontiguousarray(experts, np.int32)
        if table.ndim != 3:
            raise ValueError(
                f"[Record] experts has shape {table.shape}; [tokens, layers, K] is required"
            )
        tokens, count, _ = table.shape
        self._experts: Ints = table
        self._weights: Floats = np.ascontiguousarray(weights, np.float32)
        self.layers: Ints = _column(layers, np.arange(count), count, "layers")
        most = int(table.max(initial=0)) + 1
        self.num_experts: Ints = _column(num_experts, np.full(count, most), count, "num_experts")
        self._sequences = _column(sequences, np.zeros(tokens), tokens, "sequences")
        self._positions = _column(positions, np.arange(tokens), tokens, "positions")
        self._ids = _column(ids, np.full(tokens, -1), tokens, "ids")
        self._logits = None if logits is None else np.ascontiguousarray(logits, np.float32)
        if self._weights.shape != table.shape:
            raise ValueError(
                f"[Record] weights has shape {self._weights.shape}; {table.shape} is required"
            )
        if self._logits is not None and self._logits.shape[:2] != table.shape[:2]:
            raise ValueError(
                f"[Record] logits has shape {self._logits.shape}; "
                f"[{tokens}, {count}, E] is required"
            )
        if table.size and (table.min() < -1 or (table >= self.num_experts[:, None]).any()):
            raise ValueError(
                f"[Record] experts are {table.min()} to {table.max()}; -1 to num_experts - 1, "
                f"{most - 1} at most, are required"
            )
        self._texts = None if texts is None else list(texts)
        self._tokenizer = tokenizer
        self._pending: list[Pass] = []

    @property
    def experts(self) -> Ints:
        """int32 [tokens, layers, K], -1 for an empty slot."""
        return self._complete()._experts

    @property
    def weights(self) -> Floats:
        """float32 [tokens, layers, K], 0 in an empty slot."""
        return self._complete()._weights

    @property
    def sequences(self) -> Ints:
        """int32 [tokens]: which sequence of the batch a token belongs to."""
        return self._complete()._sequences

    @property
    def positions(self) -> Ints:
        """int32 [tokens]: the token's place in its sequence."""
        return self._complete()._positions

    @property
    def ids(self) -> Ints:
        """int32 [tokens]: the token ids that were read, -1 where unknown."""
        return self._complete()._ids

    @property
    def logits(self) -> Floats | None:
        """float32 [tokens, layers, E], NaN beyond a layer's experts; None if not recorded."""
        return self._complete()._logits

    @property
    def texts(self) -> list[str] | None:
        """The text of each token; None without a tokenizer."""
        self._complete()
        if self._texts is None and self._tokenizer is not None:
            name = self._tokenizer.token_text
            self._texts = [name(int(token)) if token >= 0 else "" for token in self._ids]
        return self._texts

    @property
    def counts(self) -> Longs:
        """int64 [layers, E]: how many tokens each expert served."""
        experts = self.experts
        table = np.zeros((len(self.layers), int(self.num_experts.max(initial=0))), np.int64)
        for layer in range(len(self.layers)):
            chosen = experts[:, layer]
            table[layer] = np.bincount(chosen[chosen >= 0], minlength=table.shape[1])
        return table

    def __len__(self) -> int:
        return len(self.experts)

    def __repr__(self) -> str:
        tokens, layers, k = self.experts.shape
        return f"Record({tokens} tokens, {layers} layers, {k} slots)"

    def __eq__(self, other: object) -> bool:
        """Equal choices, weights (to the byte) and places; logits and texts do not count."""
        if not isinstance(other, Record):
            return NotImplemented
        mine, theirs = self._complete(), other._complete()
        return all(
            np.array_equal(getattr(mine, name), getattr(theirs, name))
            for name in ("_experts", "layers", "_sequences", "_positions", "_ids")
        ) and (mine._weights.tobytes() == theirs._weights.tobytes())

    __hash__ = None  # type: ignore[assignment]

    def layer_index(self, layer: int) -> int:
        """Where the model's layer number `layer` stands in the table; ValueError if nowhere."""
        found = np.flatnonzero(self.layers == layer)
        if not len(found):
            raise ValueError(f"[Record] layer {layer}; recorded are {self.layers.tolist()}")
        return int(found[0])

    # -- recording -------------------------------------------------------------------------

    def add(self, part: "Pass") -> None:
        """Append the tokens of one forward pass."""
        self._pending.append(part)
        self._texts = None

    def _complete(self) -> "Record":
        """Fold what was added into the arrays; recording itself only keeps references."""
        pending, self._pending = self._pending, []
        if pending:
            k = max([self._experts.shape[2], *(part.slots() for part in pending)])
            most = int(self.num_experts.max(initial=0))
            tables = [part.table(k) for part in pending]
            self._experts = np.concatenate(
                [_widened(self._experts, k, -1), *(experts for experts, _ in tables)]
            )
            self._weights = np.concatenate(
                [_widened(self._weights, k, 0), *(weights for _, weights in tables)]
            )
            for name in ("sequences", "positions", "ids"):
                parts = [getattr(part, name) for part in pending]
                setattr(self, f"_{name}", np.concatenate([getattr(self, f"_{name}"), *parts]))
            if self._logits is not None:
                self._logits = np.concatenate(
                    [self._logits, *(part.logit_table(most) for part in pending)]
                )
        return self

    # -- editing ---------------------------------------------------------------------------

    def edit(
        self,
        layer: int | Iterable[int] | None = None,
        *,
        swap: Mapping[int, int] | None = None,
        drop: int | Iterable[int] = (),
        reweight: Mapping[int, float] | None = None,
        tokens: slice | Sequence[int] | npt.NDArray[Any] | None = None,
    ) -> "Record":
        """An edited copy; this record stays as it is.

        `layer`: the model's number of a layer, several, or None for all. `swap` {7: 11} sends to
        11 what went to 7, weight included (where 11 was chosen too, its slot takes both weights);
        {7: 11, 11: 7} exchanges two experts. `drop` empties the slots of these experts; the other
        weights stay. `reweight` {7: 0.5} multiplies weights. `tokens` selects rows, default all.
        Swapping comes first, then dropping, then reweighting.
        """
        layers = self.layers.tolist() if layer is None else layer
        places = [self.layer_index(n) for n in ([layers] if isinstance(layers, int) else layers)]
        rows = np.arange(len(self))[slice(None) if tokens is None else tokens]
        dropped = [drop] if isinstance(drop, int) else list(drop)
        experts, weights = self.experts.copy(), self.weights.copy()
        for place in places:
            self._require_experts(place, [*(swap or {}), *(swap or {}).values()])
            self._require_experts(place, [*dropped, *(reweight or {})])
            chosen, amounts = experts[rows, place], weights[rows, place]
            if swap:
                chosen, amounts = _swapped(chosen, amounts, swap)
            gone = np.isin(chosen, dropped)
            chosen[gone], amounts[gone] = -1, 0
            for expert, factor in (reweight or {}).items():
                amounts[chosen == expert] *= np.float32(factor)
            experts[rows, place], weights[rows, place] = chosen, amounts
        return self._with(experts, weights)

    def _require_experts(self, place: int, experts: Iterable[int]) -> None:
        for expert in experts:
            if not 0 <= expert < self.num_experts[place]:
                raise ValueError(
                    f"[Record.edit] expert {expert} of layer {self.layers[place]}; "
                    f"it has {self.num_experts[place]}"
                )

    def _with(self, experts: Ints, weights: Floats) -> "Record":
        return Record(
            experts,
            weights,
            self.layers,
            num_experts=self.num_experts,
            sequences=self.sequences,
            positions=self.positions,
            ids=self.ids,
            logits=self.logits,
            texts=self._texts,
            tokenizer=self._tokenizer,
        )

    # -- leaving the process ---------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a compressed `.npz` that NumPy alone reads: plain arrays, nothing pickled."""
        arrays: dict[str, npt.NDArray[Any]] = {"version": np.array(VERSION)}
        for name in _ARRAYS:
            value = getattr(self, name)
            if value is not None:
                arrays[name] = value
        if self.texts is not None:
            # As JSON in bytes: NumPy's own text arrays cut trailing NULs off.
            arrays["texts"] = np.frombuffer(json.dumps(self.texts).encode(), np.uint8)
        with open(path, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Record":
        """Read what `save` wrote; FileError if the file is something else."""
        name = os.fsdecode(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in (*_ARRAYS, "texts") if key in file.files}
            text = arrays.pop("texts", None)
            texts = None if text is None else [str(t) for t in json.loads(text.tobytes())]
            return cls(arrays.pop("experts"), arrays.pop("weights"), texts=texts, **arrays)
        except OSError as error:
            raise FileError(f"[record] {name}: {error.strerror or error}") from error
        except KeyError as error:
            raise FileError(f"[record] {name}: has no array {error}") from None
        except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds
            raise FileError(f"[record] {name}: is no routing record ({error})") from error

    def to_dataframe(self) -> "pd.DataFrame":
        """One row for each chosen expert (needs pandas)."""
        import pandas as pd

        token, layer, slot = np.nonzero(self.experts >= 0)
        texts = self.texts
        columns: dict[str, Any] = {
            "token": token,
            "sequence": self.sequences[token],
            "position": self.positions[token],
            "id": self.ids[token],
            "layer": self.layers[layer],
            "slot": slot,
            "expert": self.experts[token, layer, slot],
            "weight": self.weights[token, layer, slot],
        }
        if texts is not None:
            columns["text"] = [texts[i] for i in token]
        return pd.DataFrame(columns)

    def plot(self, **options: Any) -> Any:
        """A heatmap of layers and experts (needs matplotlib); see `moekit.analysis.plots`."""
        from importlib import import_module

        return import_module("moekit.analysis.plots").load_heatmap(self, **options)


class Pass:
    """The tokens of one forward pass while they are being routed, layer after layer."""

    __slots__ = ("choices", "ids", "logits", "positions", "sequences")

    def __init__(self, sequences: Ints, positions: Ints, ids: Ints) -> None:
        self.sequences = sequences
        self.positions = positions
        self.ids = ids
        # Arrays and not assignments, which hold on to the logits that they were made from.
        self.choices: list[tuple[Ints, Floats]] = []
        self.logits: list[Floats | None] = []

    def slots(self) -> int:
        return max((experts.shape[1] for experts, _ in self.choices), default=0)

    def table(self, k: int) -> tuple[Ints, Floats]:
        """experts and weights [tokens, layers, k]."""
        experts = np.full((len(self.ids), len(self.choices), k), -1, np.int32)
        weights = np.zeros(experts.shape, np.float32)
        for layer, (chosen, amounts) in enumerate(self.choices):
            experts[:, layer, : chosen.shape[1]] = chosen
            weights[:, layer, : chosen.shape[1]] = amounts
        return experts, weights

    def add(self, assignment: Assignment, logits: Floats | None) -> None:
        """The next layer's choice."""
        self.choices.append((assignment.experts, assignment.weights))
        self.logits.append(logits)

    def logit_table(self, most: int) -> Floats:
        table = np.full((len(self.ids), len(self.logits), most), np.nan, np.float32)
        for layer, logits in enumerate(self.logits):
            if logits is not None:
                table[:, layer, : logits.shape[1]] = logits
        return table


def _column(
    value: npt.ArrayLike | None, default: npt.NDArray[Any], length: int, name: str
) -> npt.NDArray[np.int32]:
    column = np.ascontiguousarray(default if value is None else value, np.int32)
    if column.shape != (length,):
        raise ValueError(f"[Record] {name} has shape {column.shape}; [{length}] is required")
    return column


def _widened(table: npt.NDArray[Any], k: int, fill: int) -> npt.NDArray[Any]:
    missing = k - table.shape[2]
    if not missing:
        return table
    return np.pad(table, ((0, 0), (0, 0), (0, missing)), constant_values=fill)


def _swapped(experts: Ints, weights: Floats, swap: Mapping[int, int]) -> tuple[Ints, Floats]:
    changed = experts.copy()
    for old, new in swap.items():
        changed[experts == old] = new
    for slot in range(1, changed.shape[1]):
        for earlier in range(slot):
            twice = (changed[:, slot] == changed[:, earlier]) & (changed[:, slot] >= 0)
            weights[twice, earlier] += weights[twice, slot]
            changed[twice, slot], weights[twice, slot] = -1, 0
    return changed, weights
