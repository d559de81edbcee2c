"""What each expert is worth: the loss without it.

Without expert e of layer l, nothing changes below layer l, nor for tokens before the first one
whose choice or weights change. So layers below are never run again, and the keys and values of
earlier tokens come from one pass of the whole model, forked.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..intervention import Change, Intervention
from ..nn import Batch, KVCache, Model
from ..record import Record
from ..routing import begin_pass, drop_pass, end_pass, open_intervention, pushed
from .reading import (
    Doubles,
    Reading,
    Texts,
    readings,
    token_losses,
)

# Weights that differ by less are the same softmax, summed without the masked expert.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Ablation:
    """Change in loss without each expert.

    `loss`: nats a token of the whole model over `tokens` predictions. `change` float64 [layers, E]:
    what masking the expert adds to it (negative: the model is better off without), 0 for an expert
    that no token used, nan beyond a layer's experts or where it was not tried. `error`: its
    standard error over the tokens. `used` [layers, E]: the share of the tokens it serves.
    """

    layers: npt.NDArray[np.int32]
    loss: float
    tokens: int
    change: Doubles
    error: Doubles
    used: Doubles

    def most_important(self, count: int = 5) -> list[tuple[int, int, float]]:
        """(layer, expert, change in loss), the largest first."""
        known = np.where(np.isnan(self.change), -np.inf, self.change)
        order = np.argsort(-known, axis=None, kind="stable")[:count]
        places = [np.unravel_index(int(i), known.shape) for i in order]
        return [
            (int(self.layers[row]), int(e), float(self.change[row, e]))
            for row, e in places
            if np.isfinite(known[row, e])
        ]

    def __str__(self) -> str:
        lines = [f"loss {self.loss:.4f} nats over {self.tokens} tokens; without one expert:"]
        for layer, expert, change in self.most_important():
            row = int(np.flatnonzero(self.layers == layer)[0])
            lines.append(
                f"  layer {layer:>3} expert {expert:>3}  {change:+.4f} "
                f"(± {1.96 * self.error[row, expert]:.4f}; serves {self.used[row, expert]:.0%})"
            )
        return "\n".join(lines)


def ablate(
    model: Model,
    texts: Texts,
    *,
    layers: Iterable[int] | None = None,
    experts: Iterable[int] | None = None,
    window: int = 256,
    progress: bool = True,
) -> Ablation:
    """Mask every expert in turn and measure the loss on `texts` (a text, ids, or several).

    An encoder-decoder wants pairs (source, answer) and is judged by its answers.

    Args:
        layers: the model's numbers of the layers to try; all with experts by default.
        experts: which experts of them; all by default.
        window: texts are cut into sequences of this many tokens.
        progress: a bar on standard error.

    The figures are those of `with model.intervene(mask={(layer, expert)})`, computed with what the
    ablations share; where only the rounding of a softmax changes, a token counts as unchanged.
    """
    chosen = model.moe_layers if layers is None else [int(n) for n in layers]
    for n in chosen:
        if n not in model.moe_layers:
            raise ValueError(f"[ablate] layer {n}; layers with experts are {model.moe_layers}")
    counts = {n: _mixture(model, n).count for n in chosen}
    wanted = None if experts is None else {int(e) for e in experts}
    batches = list(readings(model, texts, window, op="ablate"))
    tried = {n: [e for e in range(counts[n]) if wanted is None or e in wanted] for n in chosen}
    table = (len(chosen), max(counts.values(), default=0))
    sums, squares, serves = np.zeros(table), np.zeros(table), np.zeros(table)
    total = sum(len(tried[n]) for n in chosen) * len(batches)
    reads = np.zeros(len(chosen))
    loss = predicted = 0.0
    with _bar(total, progress) as bar:
        for reading in batches:
            base = _Base(model, reading) if reading.answers is None else _PairBase(model, reading)
            loss += float(base.losses.sum())
            predicted += len(base.losses)
            for row, n in enumerate(chosen):
                for e in tried[n]:
                    change = base.change_without(n, e)
                    sums[row, e] += change.sum()
                    squares[row, e] += (change**2).sum()
                    serves[row, e] += base.uses(n, e).any(axis=1).sum()
                    bar.update()
                reads[row] += base.reads(n)
    if not predicted:
        raise ValueError("[ablate] every text has one token; two or more are required")
    mean = sums / predicted
    spread = np.sqrt(np.maximum(squares / predicted - mean**2, 0) / predicted)
    for row, n in enumerate(chosen):
        left_out = [e for e in range(table[1]) if e not in tried[n]]
        for figures in (mean, spread, serves):
            figures[row, left_out] = np.nan
    serves /= reads[:, None]
    return Ablation(
        np.array(chosen, np.int32), loss / predicted, int(predicted), mean, spread, serves
    )


def _mixture(model: Model, layer: int) -> Any:
    moe = model.layers[layer].moe
    assert moe is not None
    if moe.gate is None:
        raise ValueError(f"[ablate] layer {layer} has no router of ours; nothing can be masked")
    return moe


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="ablation", unit="expert", disable=not progress, leave=False)


class _Base:
    """One pass of the whole model over some sequences, with all that ablations share."""

    def __init__(self, model: Model, reading: Reading) -> None:
        self.model = model
        self.sequences = sequences = reading.sequences
        self.rows = sum(len(s) for s in sequences)
        self._layered = _runs_layer_by_layer(model)
        self._inputs: list[Any] = []
        self._caches: list[KVCache] = []
        with model.record(logits=True) as record:
            logits = self._run_whole() if self._layered else model.logits(sequences)
        self._record: Record = record
        self._first = np.cumsum([0, *(len(s) for s in sequences)])
        self.losses = self._losses(logits, list(range(len(sequences))), [0] * len(sequences))

    def _run_whole(self) -> Any:
        ids = np.concatenate(self.sequences)
        self._caches = self.model.new_sequences(len(self.sequences))
        batch = Batch([len(s) for s in self.sequences], self._caches, ids)
        begin_pass(self.model, batch, None)
        x = self.model.embed(batch.ids)
        for n, block in enumerate(self.model.layers):
            self._inputs.append(x)
            x = block(x, batch, n)
        end_pass(batch)
        # A recurrent state cannot be taken back to an earlier token.
        self._layered = not any(sequence.state for sequence in self._caches)
        return self.model.read_out(x)

    def _batch(self, starts: Sequence[int], which: Iterable[int]) -> Batch:
        """Sequences from their starts on, behind the shared past."""
        parts, caches = [], []
        for start, i in zip(starts, which, strict=True):
            past = self._caches[i].fork()
            past.truncate(start)
            parts.append(self.sequences[i][start:])
            caches.append(past)
        return Batch([len(p) for p in parts], caches, np.concatenate(parts))

    def reads(self, layer: int) -> int:
        """Tokens that the layer sees."""
        return self.rows

    def uses(self, layer: int, expert: int) -> Any:
        """Bool [tokens, K]: the slots that the expert has."""
        return self._record.experts[:, self._record.layer_index(layer)] == expert

    def _affected(self, layer: int, mask: Any) -> Any:
        """Bool [tokens]: whose experts or weights change in the layer itself."""
        moe = _mixture(self.model, layer)
        if moe.router is not moe.gate or not open_intervention(self.model).empty:
            return np.ones(self.rows, np.bool_)
        place = self._record.layer_index(layer)
        logits = self._record.logits
        assert logits is not None
        ids = np.concatenate(self.sequences)
        row = np.ascontiguousarray(logits[:, place, : moe.count])
        chosen = moe.gate.route(row, ids, mask=mask)
        k = chosen.experts.shape[1]
        before = self._record.weights[:, place, :k]
        moved = (chosen.experts != self._record.experts[:, place, :k]).any(axis=1)
        apart = ~(np.abs(chosen.weights - before) <= _ROUNDING * np.abs(before))
        return moved | apart.any(axis=1)

    def change_without(self, layer: int, expert: int) -> Doubles:
        """Per predicted token, the loss without the expert minus the loss with it."""
        without = np.arange(_mixture(self.model, layer).count) == expert
        affected = self._affected(layer, without)
        which, starts = [], []
        for i in range(len(self.sequences)):
            hits = np.flatnonzero(affected[self._first[i] : self._first[i + 1]])
            # A change at the last token has no prediction to change.
            if len(hits) and hits[0] < len(self.sequences[i]) - 1:
                which.append(i)
                starts.append(int(hits[0]))
        change = np.zeros(len(self.losses))
        if not which:
            return change
        masked = Intervention({layer: Change(mask=without)})
        if self._layered:
            logits = self._run_from(layer, masked, which, starts)
        else:
            with pushed(self.model, masked):
                logits = self.model.logits([self.sequences[i] for i in which])
            starts = [0] * len(which)
        changed = self._losses(logits, which, starts)
        at = 0
        for i, start in zip(which, starts, strict=True):
            length = len(self.sequences[i]) - start - 1
            # Losses skip the last token of each sequence: sequence i begins i places earlier.
            begin = int(self._first[i]) - i + start
            change[begin : begin + length] = (
                changed[at : at + length] - self.losses[begin : begin + length]
            )
            at += length
        return change

    def _run_from(
        self, layer: int, without: Intervention, which: list[int], starts: list[int]
    ) -> Any:
        batch = self._batch(starts, which)
        with pushed(self.model, without):
            begin_pass(self.model, batch, None)
        rows = np.concatenate(
            [
                np.arange(self._first[i] + start, self._first[i + 1])
                for i, start in zip(which, starts, strict=True)
            ]
        )
        x = self._inputs[layer][rows]
        try:
            for n in range(layer, len(self.model.layers)):
                x = self.model.layers[n](x, batch, n)
        finally:
            drop_pass(batch)  # without the layers before: not one to record or to count
        return self.model.read_out(x)

    def _losses(self, logits: Any, which: Sequence[int], starts: Sequence[int]) -> Doubles:
        """Of the predictions of all tokens but each sequence's last."""
        found, row = [], 0
        for i, start in zip(which, starts, strict=True):
            ids = self.sequences[i][start:]
            found.append(token_losses(logits[row : row + len(ids) - 1], ids[1:]))
            row += len(ids)
        return np.concatenate(found) if found else np.zeros(0)


class _PairBase:
    """The same for an encoder-decoder's sources and answers: each ablation runs the whole model."""

    def __init__(self, model: Model, reading: Reading) -> None:
        self.model = model
        self._reading = reading
        with model.record() as record:
            logits = reading.logits(model)
        self._record: Record = record
        self.losses = token_losses(logits, reading.following)

    def reads(self, layer: int) -> int:
        """Tokens that the layer sees, of the sources or of the answers."""
        parts = self._reading.answers if layer >= _depth(self.model) else self._reading.sequences
        return sum(len(part) for part in parts or ())

    def uses(self, layer: int, expert: int) -> Any:
        """Bool [tokens, K]: the slots that the expert has."""
        return self._record.experts[:, self._record.layer_index(layer)] == expert

    def change_without(self, layer: int, expert: int) -> Doubles:
        """Per predicted token, the loss without the expert minus the loss with it."""
        without = np.arange(_mixture(self.model, layer).count) == expert
        with pushed(self.model, Intervention({layer: Change(mask=without)})):
            logits = self._reading.logits(self.model)
        return token_losses(logits, self._reading.following) - self.losses


def _depth(model: Model) -> int:
    return int(getattr(model, "encoder_depth", 0))


def _runs_layer_by_layer(model: Model) -> bool:
    """Is a pass embed, blocks, read out, with one row of x for each token, as `Model` has it?

    Where experts have a capacity, tokens before a cut count as well.
    """
    kind: Any = type(model)
    if any(block.moe is not None and block.moe.capacity is not None for block in model.layers):
        return False
    return all(
        getattr(kind, name) is getattr(Model, name) for name in ("logits", "_hidden", "embed")
    )
