"""Which experts worked, drawn in the terminal: one strip of shades for each layer."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from ..record import Record

# Shades say the amount where there are no colours; an unused expert stays a dot.
_SHADES = "·░▒▓█"
# From seldom to often: a sequential ramp that stays readable in colour blindness (viridis).
_RAMP = ("#443983", "#31688e", "#21918c", "#35b779", "#90d743", "#fde725")
# Beside the strip: layer number, how many experts worked, the busiest.
_MARGIN = 38
MAX_LAYERS = 24


def expert_strips(record: "Record", width: int = 80) -> Text:
    """A line per layer: shade = the expert's share of the layer's busiest one.

    Where the experts do not fit in `width`, neighbours share a cell, which shows their mean. Of
    very deep models, every n-th layer is drawn.
    """
    counts = record.counts
    cells = max(8, min(int(record.num_experts.max()), width - _MARGIN))
    layers = range(0, len(counts), -(-len(counts) // MAX_LAYERS))
    tokens = len(record)
    title = f"experts used by {tokens} tokens, {_SHADES[1]} seldom {_SHADES[-1]} often"
    if len(layers) < len(counts):
        title += f" ({len(layers)} of {len(counts)} layers)"
    picture = Text(title + "\n", style="dim")
    for i in layers:
        used = counts[i, : record.num_experts[i]]
        picture.append(f"layer {record.layers[i]:>3} ", style="default")
        picture.append_text(_strip(used, cells))
        working = int((used > 0).sum())
        if working:
            picture.append(
                f" {working:>3} of {len(used)}, most #{used.argmax()} "
                f"({used.max() / max(1, used.sum()):.0%})",
            )
        picture.append("\n")
    picture.rstrip()
    return picture


def _strip(used: npt.NDArray[np.int64], cells: int) -> Text:
    parts = np.array_split(used, min(cells, len(used)))
    means = np.array([part.mean() for part in parts])
    most = max(float(means.max()), 1e-9)
    strip = Text()
    for mean in means:
        share = float(mean) / most
        if share == 0:
            strip.append(_SHADES[0], Style(dim=True))
            continue
        shade = _SHADES[1 + min(len(_SHADES) - 2, int(share * (len(_SHADES) - 1)))]
        strip.append(shade, Style(color=_RAMP[min(len(_RAMP) - 1, int(share * len(_RAMP)))]))
    return strip
