"""Which experts every token went to: recorded, counted, saved, edited, replayed.

A record is a table of tokens by MoE layers by slots. The order [tokens, layers, K] is the one in
which serving engines (vLLM's and SGLang's `routed_experts`) return routed experts.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import record_file
from .passes import Part, Pass, part_of
from .record_columns import MOST_EXPERTS, column_of, int32_of, trace_columns, widened
from .record_edit import read_wishes, rows_of

if TYPE_CHECKING:
    import pandas as pd

    from .tokenizer import Tokenizer

_EDITED = "edited"
# Passes that wait to be laid out as tables.
_FOLD_PASSES = 128
_FOLD_TOKENS = 4096

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


class Record:
    """Routing of some tokens: what `model.record()` fills and `model.forward(routing=)` replays.

    `experts` int32 [tokens, layers, K] (-1: none) and `weights` float32 of the same shape are in
    the order of the slots. `layers` [layers] are the model's own numbers, `num_experts` [layers]
    the experts each has. Token i is at place `positions[i]` of sequence `sequences[i]` and was
    read as `ids[i]` (-1: unknown). `logits` float32 [tokens, layers, E] or None; `margins` float32
    [tokens, layers] or None. Without `weights` (a trace of another engine has ids alone) a replay
    lets the model's own routers weigh the experts.

    `policy` says in words which model, under which interventions, chose; records of different
    policies are not joined.
    """

    def __init__(
        self,
        experts: npt.ArrayLike,
        weights: npt.ArrayLike | None = None,
        layers: npt.ArrayLike | None = None,
        *,
        num_experts: npt.ArrayLike | None = None,
        sequences: npt.ArrayLike | None = None,
        positions: npt.ArrayLike | None = None,
        ids: npt.ArrayLike | None = None,
        logits: npt.ArrayLike | None = None,
        margins: npt.ArrayLike | None = None,
        on_input: npt.ArrayLike | None = None,
        texts: Sequence[str] | None = None,
        policy: str = "",
        tokenizer: "Tokenizer | None" = None,
    ) -> None:
        table = int32_of(experts, "experts")
        if table.ndim != 3:
            raise ValueError(
                f"[Record] experts has shape {table.shape}; [tokens, layers, K] is required"
            )
        tokens, count, _ = table.shape
        self._experts: Ints = table
        self._weights = None if weights is None else np.ascontiguousarray(weights, np.float32)
        self.layers: Ints = column_of(layers, np.arange(count), count, "layers")
        most = int(table.max(initial=0)) + 1
        self.num_experts: Ints = column_of(num_experts, np.full(count, most), count, "num_experts")
        self._sequences = column_of(sequences, np.zeros(tokens), tokens, "sequences")
        self._positions = column_of(positions, np.arange(tokens), tokens, "positions")
        self._ids = column_of(ids, np.full(tokens, -1), tokens, "ids")
        self._logits = None if logits is None else np.ascontiguousarray(logits, np.float32)
        self._margins = None if margins is None else np.ascontiguousarray(margins, np.float32)
        self._on_input = None if on_input is None else np.ascontiguousarray(on_input, np.bool_)
        self._policy = policy
        if self._on_input is not None and self._on_input.shape != (count,):
            raise ValueError(
                f"[Record] on_input has shape {self._on_input.shape}; [{count}] is required"
            )
        if self._margins is not None and self._margins.shape != (tokens, count):
            raise ValueError(
                f"[Record] margins has shape {self._margins.shape}; [{tokens}, {count}] is required"
            )
        if self._weights is not None and self._weights.shape != table.shape:
            raise ValueError(
                f"[Record] weights has shape {self._weights.shape}; {table.shape} is required"
            )
        if self._logits is not None and (
            self._logits.ndim != 3 or self._logits.shape[:2] != table.shape[:2]
        ):
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
        if self._texts is not None and len(self._texts) != tokens:
            raise ValueError(
                f"[Record] texts has {len(self._texts)} entries; {tokens} are required"
            )
        if len(set(self.layers.tolist())) != count:
            raise ValueError(f"[Record] layers are {self.layers.tolist()}; each once is required")
        if count and not 0 <= self.num_experts.min() <= self.num_experts.max() <= MOST_EXPERTS:
            raise ValueError(
                f"[Record] num_experts is {self.num_experts.min()} to {self.num_experts.max()}; "
                f"0 to {MOST_EXPERTS} is required"
            )
        self._tokenizer = tokenizer
        self._pending: list[Pass] = []
        self._pending_tokens = 0
        self._parts: list[Part] = []

    @property
    def experts(self) -> Ints:
        """int32 [tokens, layers, K], -1 for an empty slot."""
        return self._complete()._experts

    @property
    def weights(self) -> Floats:
        """float32 [tokens, layers, K], 0 in an empty slot; ValueError if they are not known."""
        weights = self._complete()._weights
        if weights is None:
            raise ValueError("[Record] it has no weights; a replay in the model gives them")
        return weights

    @property
    def weights_or_none(self) -> Floats | None:
        """The same, None if they are not known."""
        return self._complete()._weights

    @property
    def policy(self) -> str:
        """Which model under which interventions chose these experts; "" if unknown."""
        return self._policy

    def require_policy(self, policy: str) -> None:
        """ValueError if the record holds, or is being filled with, choices of another policy."""
        if self._policy not in ("", policy):
            raise ValueError(
                f"[record] these tokens are routed by {_named(policy)}; the record was made under "
                f"{_named(self._policy)}, and one record holds one policy"
            )

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
    def margins(self) -> Floats | None:
        """float32 [tokens, layers]: the K-th score minus the next one; None if not recorded.

        In units of what ranks: logits where a softmax chooses, sigmoid (plus bias) in
        DeepSeek-V3. Negative where a group limit or an intervention overruled the scores.
        """
        return self._complete()._margins

    def on_input_of(self, place: int) -> bool | None:
        """Do the weights of the place-th layer scale the experts' inputs? None if unknown."""
        flags = self._complete()._on_input
        return None if flags is None else bool(flags[place])

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
        ) and (_bytes(mine._weights) == _bytes(theirs._weights))

    __hash__ = None  # type: ignore[assignment]

    def layer_index(self, layer: int) -> int:
        """Where the model's layer number `layer` stands in the table; ValueError if nowhere."""
        known = isinstance(layer, int | np.integer) and not isinstance(layer, bool)
        found = np.flatnonzero((self.layers == layer) & known)
        if not len(found):
            raise ValueError(f"[Record] layer {layer!r}; recorded are {self.layers.tolist()}")
        return int(found[0])

    # -- recording -------------------------------------------------------------------------

    def add(self, one: Pass) -> None:
        """Append the tokens of one forward pass."""
        self._policy = one.policy
        self._pending.append(one)
        self._pending_tokens += len(one.ids)
        self._texts = None
        if self._pending_tokens > _FOLD_TOKENS or len(self._pending) > _FOLD_PASSES:
            self._fold()

    def _fold(self) -> None:
        """Lay what was added out in tables: recording itself only keeps references."""
        pending, self._pending, self._pending_tokens = self._pending, [], 0
        kept = [name for name in ("logits", "margins") if getattr(self, f"_{name}") is not None]
        most = 0 if self._logits is None else self._logits.shape[2]
        self._parts.append(part_of(pending, self.layers.tolist(), most, kept))

    def _complete(self) -> "Record":
        if self._pending:
            self._fold()
        parts, self._parts = self._parts, []
        if not parts:
            return self
        k = max([self._experts.shape[2], *(part.experts.shape[2] for part in parts)])

        def whole(name: str) -> Any:
            return np.concatenate([getattr(self, f"_{name}"), *(getattr(p, name) for p in parts)])

        def whole_wide(name: str, fill: int) -> Any:
            tables = [getattr(self, f"_{name}"), *(getattr(part, name) for part in parts)]
            return np.concatenate([widened(table, k, fill) for table in tables])

        self._experts = whole_wide("experts", -1)
        if self._weights is not None:
            self._weights = whole_wide("weights", 0)
        for name in ("sequences", "positions", "ids"):
            setattr(self, f"_{name}", whole(name))
        for name in ("logits", "margins"):
            if getattr(self, f"_{name}") is not None:
                setattr(self, f"_{name}", whole(name))
        if self._on_input is not None:
            found = [layer for part in parts for layer in part.on_input]
            self._on_input |= np.isin(self.layers, found)
        return self

    @classmethod
    def join(cls, records: Iterable["Record"]) -> "Record":
        """Records one after another, their sequences numbered on.

        ValueError for different policies or layers: what one model chose says nothing about
        another. What some of them lack (weights, logits, margins, texts) the whole lacks.
        """
        parts = [record._complete() for record in records]
        if not parts:
            raise ValueError("[Record.join] there are no records")
        first = parts[0]
        for part in parts[1:]:
            if part._policy != first._policy:
                raise ValueError(
                    f"[Record.join] one record was made under {_named(part._policy)}, another "
                    f"under {_named(first._policy)}; one policy is required"
                )
            same = np.array_equal(part.layers, first.layers)
            if not same or not np.array_equal(part.num_experts, first.num_experts):
                raise ValueError(
                    f"[Record.join] a record has layers {part.layers.tolist()} of "
                    f"{part.num_experts.tolist()} experts, another {first.layers.tolist()} of "
                    f"{first.num_experts.tolist()}; the same are required"
                )
        k = max(part._experts.shape[2] for part in parts)
        begins = np.cumsum([0, *(int(part._sequences.max(initial=-1)) + 1 for part in parts)])
        texts = [part.texts for part in parts]

        def all_of(name: str, fill: int | None = None) -> Any:
            tables = [getattr(part, name) for part in parts]
            if any(table is None for table in tables):
                return None
            return np.concatenate(
                tables if fill is None else [widened(table, k, fill) for table in tables]
            )

        return cls(
            all_of("_experts", -1),
            all_of("_weights", 0),
            first.layers,
            num_experts=first.num_experts,
            sequences=np.concatenate(
                [part._sequences + at for part, at in zip(parts, begins, strict=False)]
            ),
            positions=all_of("_positions"),
            ids=all_of("_ids"),
            logits=all_of("_logits"),
            margins=all_of("_margins"),
            on_input=first._on_input,
            texts=None if any(t is None for t in texts) else [w for t in texts for w in t or ()],
            policy=first._policy,
            tokenizer=first._tokenizer,
        )

    @classmethod
    def from_routed_experts(
        cls,
        routed_experts: npt.ArrayLike | Sequence[npt.ArrayLike],
        layers: npt.ArrayLike | None = None,
        *,
        num_experts: int | npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
    ) -> "Record":
        """A trace that another engine has written: ids [tokens, layers, K] of any integer type.

        vLLM (`--enable-return-routed-experts`, `output.routed_experts`) and SGLang
        (`return_routed_experts`, `meta_info["routed_experts"]`) give ids alone, of all layers,
        dense ones included, which a replay passes over (`trace[:, model.moe_layers]` with
        `layers=model.moe_layers` leaves them out of measures too). SGLang sends base64 of int32:
        `np.frombuffer(base64.b64decode(text), np.int32).reshape(-1, layers, K)`. Several sequences
        are a list of arrays.

        `layers`: the model's numbers of the layers, where the trace has those with experts only.
        `num_experts`: of every layer, or [layers]; by default the largest id there is, plus one.

        >>> routing = Record.from_routed_experts(output.routed_experts)  # doctest: +SKIP
        >>> model.forward(ids, routing=routing)                          # doctest: +SKIP
        """
        whole, sequences, positions = trace_columns(routed_experts)
        if num_experts is not None:
            num_experts = np.broadcast_to(np.asarray(num_experts), (whole.shape[1],))
        return cls(
            whole,
            weights,
            layers,
            num_experts=num_experts,
            sequences=sequences,
            positions=positions,
            policy="another engine's trace",
        )

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
        Swapping comes first, then dropping, then reweighting. ValueError and TypeError for
        layers, experts and tokens that are not there.
        """
        known = self._weights is not None
        if reweight and not known:
            raise ValueError("[Record.edit] it has no weights that reweight could change")
        wishes = read_wishes(swap, drop, reweight)
        numbers: Any = self.layers if layer is None else layer
        places = [self.layer_index(n) for n in ([numbers] if np.ndim(numbers) == 0 else numbers)]
        rows = rows_of(tokens, len(self))
        experts = self.experts.copy()
        weights = self.weights.copy() if known else np.zeros(experts.shape, np.float32)
        for place in places:
            wishes.require_below(int(self.num_experts[place]), int(self.layers[place]))
            experts[rows, place], weights[rows, place] = wishes.applied(
                experts[rows, place], weights[rows, place]
            )
        return self._with(experts, weights if known else None)

    def _with(self, experts: Ints, weights: Floats | None) -> "Record":
        edited = self._policy.endswith(_EDITED)
        return Record(
            experts,
            weights,
            self.layers,
            num_experts=self.num_experts,
            sequences=self.sequences,
            positions=self.positions,
            ids=self.ids,
            logits=self.logits,
            on_input=self._on_input,
            texts=self._texts,
            policy=self._policy if edited else f"{self._policy}; {_EDITED}".removeprefix("; "),
            tokenizer=self._tokenizer,
        )

    # -- leaving the process ---------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a compressed `.npz` that NumPy alone reads: plain arrays, nothing pickled."""
        self._complete()
        own = ("layers", "num_experts")
        arrays = {n: getattr(self, n if n in own else f"_{n}") for n in record_file.ARRAYS}
        record_file.write(path, arrays, {"texts": self.texts, "policy": self._policy})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Record":
        """Read what `save` wrote; FileError if the file is something else."""
        return record_file.read(path, cls)

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
        }
        if self._weights is not None:
            columns["weight"] = self._weights[token, layer, slot]
        if self._margins is not None:
            columns["margin"] = self._margins[token, layer]
        if texts is not None:
            columns["text"] = [texts[i] for i in token]
        return pd.DataFrame(columns)

    def plot(self, kind: str = "load", **options: Any) -> Any:
        """A picture (needs matplotlib), made by `moekit.analysis.plots`.

        `kind`: "load", a heatmap of layers and experts · "coactivation", which experts of one
        `layer=` work together · "time", the load of one `layer=` from token to token.
        """
        from importlib import import_module

        plots = import_module("moekit.analysis.plots")
        kinds = {
            "load": "load_heatmap",
            "coactivation": "coactivation_map",
            "time": "load_over_time",
        }
        if kind not in kinds:
            raise ValueError(f"[Record.plot] kind {kind!r}; one of {', '.join(kinds)} is required")
        return getattr(plots, kinds[kind])(self, **options)

    def show(self, layer: int | None = None, by: str = "expert") -> Any:
        """The text, each token coloured by its first expert in `layer` or by its margin there.

        Prints in a terminal (rich), displays in a notebook, `.save("t.html")` keeps it; see
        `moekit.analysis.coloured_text`.
        """
        from importlib import import_module

        return import_module("moekit.analysis.text").coloured_text(self, layer, by)


def _named(policy: str) -> str:
    return f"'{policy}'" if policy else "an unknown policy"


def _bytes(weights: Floats | None) -> bytes | None:
    return None if weights is None else weights.tobytes()
