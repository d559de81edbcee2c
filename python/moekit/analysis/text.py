"""A text in the colours of its routing: in a terminal, in a notebook, in a file of its own."""

import html
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..record import Record

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

# Tableau's ten and their light twins: neighbours in the list are far apart. Experts beyond twenty
# share a colour; the tooltip and the legend tell them apart.
_COLOURS = (
    *("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#edc948", "#76b7b2", "#9c755f"),
    *("#ff9da7", "#79706e", "#a0cbe8", "#ffbe7d", "#8cd17d", "#ff9d9a", "#d4a6c8", "#b6992d"),
    *("#499894", "#d7b5a6", "#86bcb6", "#bab0ac"),
)
# From a close call to a sure one: dark red over sand to white.
_RAMP = ((165, 15, 21), (251, 106, 74), (252, 187, 161), (255, 245, 240))
_MOST_TOKENS = 20000
_LEGEND = 12


class ColouredText:
    """The tokens of a record, coloured; made by `coloured_text`.

    In a notebook it shows itself as HTML that needs no script and survives export; `print` it with
    rich in a terminal; `save("t.html")` writes a page.
    """

    def __init__(self, record: Record, layer: int, by: str) -> None:
        self.record, self.layer, self.by = record, layer, by
        self._place = record.layer_index(layer)
        self._words = _words(record)
        self._first = _first_experts(record, self._place)
        self._margins = None
        if by == "margin":
            margins = record.margins
            assert margins is not None
            self._margins = margins[:, self._place]

    @property
    def colours(self) -> list[str]:
        """ "#rrggbb" of each token; "" for one that no expert served."""
        if self._margins is None:
            return ["" if e < 0 else _COLOURS[e % len(_COLOURS)] for e in self._first]
        # By rank: margins are spread over orders of magnitude.
        known = np.isfinite(self._margins)
        ranks = np.zeros(len(self._margins))
        ranks[known] = np.argsort(np.argsort(self._margins[known], kind="stable")) / max(
            1, int(known.sum()) - 1
        )
        return [_ramp(float(r)) if k else "" for r, k in zip(ranks, known, strict=True)]

    def _tooltip(self, row: int) -> str:
        chosen = self.record.experts[row, self._place]
        weights = self.record.weights_or_none
        parts = []
        for slot, expert in enumerate(chosen):
            if expert >= 0:
                weight = "" if weights is None else f" ({weights[row, self._place, slot]:.2f})"
                parts.append(f"{expert}{weight}")
        text = "experts " + ", ".join(parts) if parts else "no expert"
        if self._margins is not None:
            text += f"; margin {self._margins[row]:.3g}"
        return text

    def _legend(self) -> list[tuple[str, str]]:
        """(label, colour)."""
        if self._margins is not None:
            known = self._margins[np.isfinite(self._margins)]
            if not len(known):
                return []
            marks = [0.0, 1 / 3, 2 / 3, 1.0]
            return [(f"{np.quantile(known, m):.2g}", _ramp(m)) for m in marks]
        used, times = np.unique(self._first[self._first >= 0], return_counts=True)
        order = np.argsort(-times, kind="stable")[:_LEGEND]
        return [
            (f"{used[i]} ({times[i] / len(self._first):.0%})", _COLOURS[used[i] % len(_COLOURS)])
            for i in order
        ]

    @property
    def title(self) -> str:
        """What the colours mean."""
        if self._margins is None:
            return f"layer {self.layer}, each token's first expert (share of the tokens)"
        return f"layer {self.layer}, margin of the choice: dark is a close call"

    def html(self) -> str:
        """A <div> that needs nothing else."""
        out = [
            '<div style="font-family:sans-serif;line-height:1.9;max-width:60em;color:#111;'
            'background:#fff;padding:0.6em 0.8em">',
            f'<div style="font-size:85%;color:#444">{html.escape(self.title)}: ',
        ]
        for label, colour in self._legend():
            out.append(f'<span style="{_style(colour)}">&nbsp;{label}&nbsp;</span> ')
        out.append('</div><div style="white-space:pre-wrap;font-family:monospace">')
        sequence = 0
        for row, (word, colour) in enumerate(zip(self._words, self.colours, strict=True)):
            if row >= _MOST_TOKENS:
                out.append(f"... ({len(self._words) - row} more tokens)")
                break
            if self.record.sequences[row] != sequence:
                sequence = int(self.record.sequences[row])
                out.append('<hr style="border:0;border-top:1px solid #ccc">')
            style = f' style="{_style(colour)}"' if colour else ""
            shown = html.escape(word.replace("\n", "↵\n"))
            out.append(f'<span title="{self._tooltip(row)}"{style}>{shown}</span>')
        out.append("</div></div>")
        return "".join(out)

    def _repr_html_(self) -> str:
        return self.html()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a page of its own, in UTF-8."""
        head = '<!doctype html><meta charset="utf-8">'
        title = f"<title>{html.escape(self.title)}</title>"
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"{head}{title}{self.html()}\n")

    def __rich_console__(
        self, console: "Console", options: "ConsoleOptions"
    ) -> Iterator["RenderableType"]:
        from rich.style import Style
        from rich.text import Text

        legend = Text(self.title + ": ", style="dim")
        for label, colour in self._legend():
            legend.append(f" {label} ", Style(color=_ink(colour), bgcolor=colour))
            legend.append(" ")
        yield legend
        text = Text()
        shown = zip(self._words[:_MOST_TOKENS], self.colours, strict=False)
        sequence = 0
        for row, (word, colour) in enumerate(shown):
            if self.record.sequences[row] != sequence:
                sequence = int(self.record.sequences[row])
                text.append("\n")
            style = Style(color=_ink(colour), bgcolor=colour) if colour else Style()
            text.append(word, style)
        yield text

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100, highlight=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def coloured_text(record: Record, layer: int | None = None, by: str = "expert") -> ColouredText:
    """The text of a record, each token in the colour of its first expert or of its margin.

    Args:
        layer: the model's number of a layer; the middle one of those recorded by default.
        by: "expert" or "margin" (of a record made with `margins=True`).

    ValueError for a record of no layers, or without margins where these are wanted.
    """
    if by not in ("expert", "margin"):
        raise ValueError(f"[coloured_text] by is {by!r}; expert or margin is required")
    if not len(record.layers):
        raise ValueError("[coloured_text] the record has no layers with experts")
    if by == "margin" and record.margins is None:
        raise ValueError(
            "[coloured_text] the record has no margins; model.record(margins=True) keeps them"
        )
    if layer is None:
        layer = int(record.layers[len(record.layers) // 2])
    return ColouredText(record, layer, by)


def _words(record: Record) -> list[str]:
    texts = record.texts
    if texts is not None:
        return texts
    return [f"[{i}]" if i >= 0 else "[?]" for i in record.ids]


def _first_experts(record: Record, place: int) -> np.ndarray:
    """The first slot that is not empty, [tokens]; -1 where all are."""
    chosen = record.experts[:, place]
    if not chosen.shape[1]:
        return np.full(len(chosen), -1)
    first = (chosen >= 0).argmax(axis=1)
    picked: np.ndarray = chosen[np.arange(len(chosen)), first]
    return picked


def _ramp(share: float) -> str:
    at = share * (len(_RAMP) - 1)
    i = min(int(at), len(_RAMP) - 2)
    mixed = [round(a + (b - a) * (at - i)) for a, b in zip(_RAMP[i], _RAMP[i + 1], strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def _ink(colour: str) -> str:
    """Black or white, whichever reads better on it."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else "#ffffff"


def _style(colour: str) -> str:
    return f"background:{colour};color:{_ink(colour)};border-radius:2px;padding:1px 0"
