"""Many cells' ratios in a few lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """How many times moekit's time a peer takes in one cell."""

    shape: str
    format: str
    tokens: int
    peer: str
    ratio: float

    @property
    def cell(self) -> tuple[str, str, int]:
        return self.shape, self.format, self.tokens


def summary(ratios: Sequence[Ratio]) -> str:
    """Against the best peer of every cell, then against each; llama.cpp as it is by default."""
    if not ratios:
        return "\nno peer was compared"
    best: dict[tuple[str, str, int], Ratio] = {}
    for ratio in ratios:
        if ratio.cell not in best or ratio.ratio < best[ratio.cell].ratio:
            best[ratio.cell] = ratio
    rows = [("the best of each cell", list(best.values()))]
    for peer in dict.fromkeys(ratio.peer for ratio in ratios):
        rows.append((peer, [ratio for ratio in ratios if ratio.peer == peer]))
    default = llama_default(ratios)
    for tokens in sorted({ratio.tokens for ratio in default}):
        there = [ratio for ratio in default if ratio.tokens == tokens]
        rows.append((f"llama.cpp's default, {tokens} tokens", there))
    lines = ["\nhow many times moekit's time the others take:"]
    for name, those in rows:
        worst = min(those, key=lambda ratio: ratio.ratio)
        lines.append(
            f"  {name:36} geometric mean {geometric_mean(r.ratio for r in those):6.2f} "
            f"of {len(those)} cells, worst {worst.ratio:.2f} "
            f"({worst.shape} {worst.format}, {worst.tokens} tokens, {worst.peer})"
        )
    slower = sorted((r for r in best.values() if r.ratio < 0.95), key=lambda r: r.ratio)
    if slower:
        lines.append(f"  cells below 0.95 of the best: {len(slower)} of {len(best)}")
    for r in slower:
        lines.append(f"    {r.ratio:5.2f}  {r.shape} {r.format}, {r.tokens} tokens, {r.peer}")
    return "\n".join(lines)


def llama_default(ratios: Iterable[Ratio]) -> list[Ratio]:
    """Weights laid out anew where llama.cpp does so, else as the file has them."""
    chosen: dict[tuple[str, str, int], Ratio] = {}
    for ratio in ratios:
        if ratio.peer == "ggml repack" or (ratio.peer == "ggml" and ratio.cell not in chosen):
            chosen[ratio.cell] = ratio
    return list(chosen.values())


def geometric_mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))
