"""Figures of importance and plasticity by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from cl_callbacks.observation.figures.card import (
    BLUE,
    FAINT,
    INK,
    PAPER,
    TEXT,
    VERMILLION,
    card,
    dress,
    legend,
)
from cl_callbacks.observation.figures.labels import every, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 60
ROW = 0.24
_DOT = {"linestyle": "none", "marker": "o", "markersize": 4, "color": PAPER, "markeredgecolor": INK}


def importance_by_layer(quantiles: Mapping[str, Sequence[float]], *, title: str | None = None) -> Figure:
    """Draws the importance of the weights of each layer: median, middle half and middle nine tenths.

    The axis is logarithmic. A range that reaches down to 0 runs into the left edge; a layer of weights with
    importance 0 is marked as 0 there.

    Args:
        quantiles: quantiles of each layer at 5, 25, 50, 75 and 95 %; NaN for a layer that was not measured.
        title: title above the figure.

    Raises:
        ValueError: no layers, or numbers that are not five rising quantiles of an importance.

    Example:
        >>> figure = importance_by_layer({"body": (0.0, 1e-6, 1e-4, 1e-3, 0.1), "head": (0.01, 0.1, 1, 2, 3)})
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['body', 'head']
    """
    for layer, values in quantiles.items():
        _check_quantiles(layer, values)
    figure, axes = _rows(list(quantiles), "quantiles", title)
    dress(axes, x="importance", title=title, grid="x")
    finite = [v for values in quantiles.values() for v in values if math.isfinite(v) and v > 0]
    low, high = (min(finite) / 3, max(finite) * 2) if finite else (0.1, 1.0)
    widen = max(1.0, math.sqrt(100 * low / high))  # under two decades the ticks would be 2e-3, 3e-3, 4e-3
    low, high = low / widen, high * widen
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    if not finite:
        axes.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
        axes.grid(False)
    for row, values in enumerate(quantiles.values()):
        if not all(map(math.isfinite, values)):
            _note(axes, row, "not measured" if any(map(math.isnan, values)) else "infinite")
        elif max(values) == 0:
            _note(axes, row, "0")
        else:
            q05, q25, median, q75, q95 = (max(value, low) for value in values)
            axes.plot([q05, q95], [row, row], color=BLUE, linewidth=1.2, linestyle="-", marker="none")
            axes.barh(row, q75 - q25, left=q25, height=0.55, color=BLUE, edgecolor="none")
            axes.plot(median, row, clip_on=False, zorder=3, **_DOT)  # type: ignore[arg-type]
    legend(figure, _ranges(), columns=3)
    return figure


def plasticity_by_layer(frozen_fraction: Mapping[str, float], mean_plasticity: Mapping[str, float]) -> Figure:
    """Draws the share of frozen weights and the mean plasticity of each layer.

    Args:
        frozen_fraction: for each layer, the share of its weights that hardly change any more, 0 to 1.
        mean_plasticity: for the same layers, the mean share of an update that is applied, 0 to 1. In
            both, NaN where nothing was measured.

    Raises:
        ValueError: no layers, not the same layers in both, or a value outside 0 to 1.

    Example:
        >>> figure = plasticity_by_layer({"body": 0.75, "head": 0.0}, {"body": 0.2, "head": 1.0})
        >>> [round(float(bar.get_width()), 2) for bar in figure.axes[0].patches]
        [0.75, 0.0, 0.2, 1.0]
    """
    from matplotlib.patches import Patch

    different = frozen_fraction.keys() ^ mean_plasticity.keys()
    if different:
        raise ValueError(
            f"frozen_fraction and mean_plasticity must be of the same layers; not so: {sorted(different)}"
        )
    for layer, value in (*frozen_fraction.items(), *mean_plasticity.items()):
        if not (math.isnan(value) or -1e-6 <= value <= 1 + 1e-6):
            raise ValueError(f"frozen_fraction and mean_plasticity are between 0 and 1; {layer} has {value}")
    figure, axes = _rows(list(frozen_fraction), "frozen_fraction", None, thickness=1.25)
    dress(axes, x="share", grid="x")
    axes.set_xlim(0, 1)
    for measured, offset, colour in ((frozen_fraction, -0.2, BLUE), (mean_plasticity, 0.2, VERMILLION)):
        for row, layer in enumerate(frozen_fraction):
            if math.isnan(measured[layer]):
                _note(axes, row + offset, "not measured")
            else:
                axes.barh(row + offset, measured[layer], height=0.38, color=colour, edgecolor="none")
    entries = [Patch(color=BLUE, label="frozen weights"), Patch(color=VERMILLION, label="mean plasticity")]
    legend(figure, entries, columns=2)
    return figure


def _check_quantiles(layer: str, values: Sequence[float]) -> None:
    if len(values) != 5:
        raise ValueError(f"quantiles of {layer} must be five, at 5, 25, 50, 75 and 95 %; got {len(values)}")
    if any(value < 0 for value in values):
        raise ValueError(f"quantiles of {layer} must not be negative, as an importance is not; got {values}")
    if any(first > second for first, second in pairwise(values)):
        raise ValueError(f"quantiles of {layer} must rise from 5 to 95 %; got {values}")


def _rows(layers: list[str], what: str, title: str | None, thickness: float = 1.0) -> tuple[Figure, Axes]:
    """Creates axes with a row for each layer, the first at the top."""
    if not layers:
        raise ValueError(f"{what} is empty: there is no layer to draw")
    short = shortened(layers, size=32)
    rows = min(len(layers), MOST_ROWS)
    figure = card(4.4 + 0.07 * max(map(len, short)), 1.2 + ROW * thickness * rows + (0.3 if title else 0.0))
    axes = figure.add_subplot()
    axes.set_ylim(len(layers) - 0.4, -0.6)
    shown = range(0, len(layers), every(len(layers), room=MOST_ROWS))
    axes.set_yticks(shown, labels=[short[row] for row in shown])
    return figure, axes


def _note(axes: Axes, row: float, text: str) -> None:
    """Writes a text at the left edge, in place of a bar."""
    across = axes.get_yaxis_transform()
    axes.text(0.01, row, text, transform=across, va="center", fontsize=TEXT - 1, color=FAINT)


def _ranges() -> list[object]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Line2D([], [], label="median", **_DOT),  # type: ignore[arg-type]
        Patch(facecolor=BLUE, edgecolor="none", label="25 to 75 %"),
        Line2D([], [], color=BLUE, linewidth=1.2, label="5 to 95 %"),
    ]
