"""Short convolutions along time, alone (LFM2) or in front of a recurrent state."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .. import ops
from ..ops.recurrence import GateActivation
from .batch import Batch
from .linear import Linear
from .types import Floats, Weights

# One sequence's rows and the arrays that its layer left (None before the first token), to what
# the rows become and the arrays to leave.
Step = Callable[[slice, tuple[Floats | None, ...]], tuple[Floats, tuple[Floats, ...]]]


def columns(x: Floats, *sizes: int) -> list[Floats]:
    """Parts of x [..., n] of these sizes along the last axis; the last part is what is left."""
    parts, end = [], 0
    for size in sizes:
        parts.append(x[..., end : end + size])
        end += size
    return [*parts, x[..., end:]]


def through_time(batch: Batch, layer: int, states: int, step: Step) -> Floats:
    """Runs `step` for each sequence of the batch, with the `states` arrays that it carries on."""
    parts = []
    for rows, cache in zip(batch.rows, batch.sequences, strict=True):
        out, after = step(rows, cache.recall(layer, states))
        cache.remember(layer, rows.stop - rows.start, *after)
        parts.append(out)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class ShortConvolution:
    """Every channel is a weighted sum of its last W values, then `activation`.

    `weight` [C, W], the newest value's weight last; `bias` [C].
    """

    __slots__ = ("activation", "bias", "weight")

    def __init__(
        self,
        weight: npt.ArrayLike,
        bias: npt.ArrayLike | None = None,
        activation: GateActivation = "silu",
    ) -> None:
        given = np.asarray(weight, np.float32)
        if given.ndim != 2:
            raise ValueError(
                f"[ShortConvolution] weight has shape {list(given.shape)}; [C, W] is required"
            )
        self.weight: Floats = np.ascontiguousarray(given.T)
        self.bias: Floats | None = None if bias is None else np.ascontiguousarray(bias, np.float32)
        self.activation: GateActivation = activation

    @property
    def channels(self) -> int:
        return int(self.weight.shape[1])

    def __call__(self, x: Floats, state: Floats | None) -> tuple[Floats, Floats]:
        """(float32 [T, C], the last W - 1 inputs) of one sequence's next rows x [T, C]."""
        return ops.causal_conv(x, self.weight, self.bias, state, activation=self.activation)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        yield "weight", "attention", self.weight
        if self.bias is not None:
            yield "bias", "attention", self.bias


class GatedConvolution:
    """LFM2's mixer: (b, c, x) = in(x); out(c · conv(b · x)).

    `into` [3H, H], `out` [H, H], a convolution over H channels without an activation.
    """

    __slots__ = ("conv", "into", "out")

    def __init__(self, into: Linear, conv: ShortConvolution, out: Linear) -> None:
        if into.rows != 3 * conv.channels or out.cols != conv.channels:
            raise ValueError(
                f"[GatedConvolution] into gives {into.rows}, out takes {out.cols}; "
                f"{3 * conv.channels} and {conv.channels} are required"
            )
        self.into, self.conv, self.out = into, conv, out

    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]:
        """No rows: a token leaves a state."""
        return ()

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None:
            batch, layer = Batch.alone(x, ()), 0
        width = self.conv.channels
        before, after, values = columns(self.into(x), width, width)
        values = before * values

        def step(rows: slice, state: tuple[Floats | None, ...]) -> tuple[Floats, tuple[Floats]]:
            mixed, kept = self.conv(values[rows], state[0])
            return mixed, (kept,)

        return self.out(after * through_time(batch, layer, 1, step))

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("into", "conv", "out"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight
