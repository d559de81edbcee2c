"""The bias controller on a live stream: how even the load becomes, and what it costs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..balance import BiasController
from ..nn import Model
from .load import load
from .reading import Doubles, Texts, divergence, readings


@dataclass(frozen=True)
class BalancedStream:
    """A stream of passes with and without the controller.

    `plain` and `balanced` float64 [steps, layers]: max violation of each pass's load (0 is even).
    `kl` [steps]: nats a token between the two next-token distributions. `controllers` hold the
    biases at the end, by layer: `model.intervene(balance=stream.controllers)` goes on with them.
    """

    layers: list[int]
    plain: Doubles
    balanced: Doubles
    kl: Doubles
    controllers: dict[int, BiasController]

    def __str__(self) -> str:
        tail = slice(-max(1, len(self.kl) // 4), None)
        lines = [f"{len(self.kl)} steps; the last quarter, on average:"]
        for i, layer in enumerate(self.layers):
            lines.append(
                f"  layer {layer:>3}  max violation {np.nanmean(self.plain[tail, i]):.2f} -> "
                f"{np.nanmean(self.balanced[tail, i]):.2f}"
            )
        lines.append(f"  cost: KL {self.kl[tail].mean():.4f} nats a token")
        return "\n".join(lines)


def balance_stream(
    model: Model,
    texts: Texts,
    gamma: float = 0.001,
    *,
    window: int = 256,
    repeat: int = 1,
    controllers: dict[int, BiasController] | None = None,
) -> BalancedStream:
    """Run `texts` as a stream, a window a step, plainly and under `BiasController`s.

    Args:
        gamma: the step of the bias, in units of the selection score (Wang et al. 2024).
        window: tokens of a step, after each of which the biases move; rests of a text shorter than
            half of it are left out.
        repeat: how often the texts run through the stream.
        controllers: by layer; go on from these instead of from zero.
    """
    if repeat < 1:
        raise ValueError(f"[balance_stream] repeat is {repeat}; 1 or more is required")
    whole = list(readings(model, texts, window, op="balance_stream", most=1))
    # The rest of a text is a short window, whose load is uneven by its shortness alone.
    long = [one for one in whole if 2 * len(one.sequences[0]) > window]
    steps = whole if model.encodes_prompt else long or whole
    steps *= repeat
    plain, balanced, kl = [], [], []
    start: dict[int | str, Any] = {"*": gamma} if controllers is None else dict(controllers.items())
    with model.intervene(balance=start) as wanted:
        pass  # checked, and the controllers made
    own = wanted.controllers
    for step in steps:
        with model.record(counters=True) as before:
            free = step.logits(model)
        with model.intervene(balance=dict(own.items())), model.record(counters=True) as after:
            held = step.logits(model)
        plain.append(load(before).max_violation)
        balanced.append(load(after).max_violation)
        kl.append(float(divergence(free, held).mean()))
    return BalancedStream(model.moe_layers, _table(plain), _table(balanced), np.array(kl), own)


def _table(rows: Iterable[Doubles]) -> Doubles:
    return np.array(list(rows), np.float64)
