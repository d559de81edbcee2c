"""Where the names of points are written, so that they cover neither each other nor points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

Box: TypeAlias = tuple[float, float, float, float]  # left, low, right, high

# How far from its point a label may go, in points (1/72 inch), nearest first.
_DISTANCES = (4, 11, 19, 28, 40)
# Its corner or side that looks at the point: horizontal, vertical.
_SIDES = ((0, 0), (0, 1), (1, 0), (1, 1), (0, 0.5), (1, 0.5), (0.5, 0), (0.5, 1))
_MARKER = 4.0


def label_points(
    axis: Any,
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    colours: Sequence[str],
    fontsize: float = 7,
    lines: Sequence[Sequence[tuple[float, float]]] = (),
) -> None:
    """Write labels[i] beside points[i], each at the first place that is free, or the freest.

    Call it when everything else is drawn: places are found at the axis's present scale. `lines`,
    each through some points, are covered no more than the points are. A label that had to go far
    gets a thin line to its point.
    """
    figure = axis.figure
    notes = [
        axis.annotate(
            label,
            point,
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=fontsize,
            color=colour,
            annotation_clip=False,
        )
        for label, point, colour in zip(labels, points, colours, strict=True)
    ]
    figure.draw_without_rendering()  # the layout, and with it the scale, is made when it is drawn
    pixels = figure.dpi / 72
    places = axis.transData.transform(points) if len(points) else []
    reach = _MARKER * pixels
    taken = [(x - reach, y - reach, x + reach, y + reach) for x, y in places]
    for line in lines:
        corners = axis.transData.transform(line)
        for begin, end in pairwise(corners):
            count = max(1, int(np.hypot(*(end - begin)) / 3))
            for part in range(count):
                x, y = begin + (end - begin) * part / count
                taken.append((x - 1, y - 1, x + 1, y + 1))
    frame = axis.get_window_extent()
    edge = (frame.x0, frame.y0, frame.x1, frame.y1)
    for note, (x, y) in zip(notes, places, strict=True):
        extent = note.get_window_extent()
        size = extent.width, extent.height
        found = [(_box((x, y), size, d * pixels, side), d) for d in _DISTANCES for side in _SIDES]
        box, distance = min(
            found,
            key=lambda one: round(  # so that of equally free places the nearest is the first
                sum(_overlap(one[0], other) for other in taken) - _overlap(one[0], edge), 2
            ),
        )
        taken.append(box)
        offset = (box[0] - x) / pixels, (box[1] - y) / pixels
        note.set_position(offset)
        if distance > _DISTANCES[1]:
            axis.annotate(
                "",
                note.xy,
                xytext=(offset[0] + size[0] / pixels / 2, offset[1] + size[1] / pixels / 2),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.5, "shrinkA": 6},
                zorder=1,
            )


def _box(
    point: tuple[float, float],
    size: tuple[float, float],
    distance: float,
    side: tuple[float, float],
) -> Box:
    left, low = (
        at - part * length + (1 - 2 * part) * distance
        for at, length, part in zip(point, size, side, strict=True)
    )
    return left, low, left + size[0], low + size[1]


def _overlap(a: Box, b: Box) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, wide) * max(0.0, high)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places moved apart to at least `gap`, by the least squares that this takes.

    Runs of places that are too near keep their mean (the pool-adjacent-violators algorithm on
    place - i * gap).
    """
    pools: list[tuple[float, int]] = []  # mean, length
    for i, place in enumerate(places):
        pools.append((place - i * gap, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    levels = [mean for mean, length in pools for _ in range(length)]
    return [level + i * gap for i, level in enumerate(levels)]
