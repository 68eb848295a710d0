"""Labels of task boundaries above the axes of a figure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from cl_callbacks.observation.figures.card import INK, TEXT
from cl_callbacks.observation.figures.labels import apart
from cl_callbacks.observation.thinning import evenly

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MOST_LINES = 100


def mark_boundaries(axes: Axes, boundaries: Sequence[float], **style: Any) -> None:
    """Draws a vertical line at each boundary, of many at no more than 100, evenly chosen."""
    for index in evenly(len(boundaries), MOST_LINES):
        axes.axvline(boundaries[index], **style)


def number_boundaries(axes: Axes, boundaries: Sequence[float]) -> None:
    """Writes the number of the ended task above each boundary, from 0, where there is room.

    Everything must have been drawn on the axes: their x limits are fixed from now on. Boundaries are the x
    positions at which tasks ended, in order.
    """
    if len(boundaries) == 0:
        return
    if any(first > second for first, second in pairwise(boundaries)):
        raise ValueError(f"boundaries must be in the order of the tasks; got {list(boundaries)}")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high)
    shown = apart([(boundary - low) / (high - low) for boundary in boundaries], gap=0.04)
    top = axes.secondary_xaxis("top")
    top.set_xticks([boundaries[i] for i in shown], labels=[str(i) for i in shown])
    top.tick_params(colors=INK, labelsize=TEXT - 1, length=0, pad=2)
    top.set_xlabel("end of task", color=INK, fontsize=TEXT)
    top.spines["top"].set_visible(False)
