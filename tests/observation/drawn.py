"""What is drawn in a figure, and where."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text


def pixels(figure: Figure, dpi: int = 100) -> np.ndarray:
    """RGBA, from 0 to 255, the first row at the top."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def saved(figure: Figure) -> np.ndarray:
    """RGBA, from 0 to 1, of the PNG that a user gets."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=100)
    file.seek(0)
    return imread(file)


def _shown_ticks(axis: Axis) -> Iterator[Text]:
    low, high = sorted(axis.get_view_interval())
    for ticks in (axis.get_major_ticks(), axis.get_minor_ticks()):
        for tick in ticks:
            if low <= tick.get_loc() <= high:
                yield from (tick.label1, tick.label2)


def _texts_of(axes: Axes) -> Iterator[Text]:
    for axis in (axes.xaxis, axes.yaxis):
        yield from _shown_ticks(axis)
        yield from (axis.label, axis.offsetText)
    yield from (*axes.texts, axes.title)
    for child in axes.child_axes:
        yield from _texts_of(child)


def texts(figure: Figure) -> list[Text]:
    """Everything that can be read, once the figure has been drawn."""
    found = [text for axes in figure.axes for text in _texts_of(axes)]
    found += [text for legend in figure.legends for text in legend.get_texts()]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


Boxes = list[tuple[str, np.ndarray]]


def boxes(figure: Figure) -> Boxes:
    """Each text with its left, bottom, right and top, in pixels."""
    pixels(figure)
    renderer = figure.canvas.get_renderer()
    # Of an annotation only the words count, not the line to what they name.
    return [(t.get_text(), Text.get_window_extent(t, renderer).extents) for t in texts(figure)]


def overlaps(found: Boxes) -> list[tuple[str, str]]:
    """Pairs of texts that stand on each other."""
    return [
        (first, second)
        for (first, a), (second, b) in combinations(found, 2)
        if min(a[2], b[2]) - max(a[0], b[0]) > 0 and min(a[3], b[3]) - max(a[1], b[1]) > 0
    ]


def cut_off(found: Boxes, figure: Figure) -> list[str]:
    """Texts that reach beyond the edge of the figure."""
    right, top = figure.bbox.extents[2:]
    return [t for t, box in found if box[0] < 0 or box[1] < 0 or box[2] > right or box[3] > top]


def contrast(first: object, second: object) -> float:
    """Of two colours, by WCAG: 1 for the same, 21 for black on white."""

    def luminance(colour: object) -> float:
        c = np.asarray(to_rgb(colour))  # type: ignore[arg-type]
        return float(
            np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
        )

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
