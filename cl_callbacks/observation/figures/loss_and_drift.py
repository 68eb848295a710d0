"""A figure of the loss, the evidence for a change, and the boundaries found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from cl_callbacks.observation.figures.boundary_numbers import MOST_LINES, mark_boundaries, number_boundaries
from cl_callbacks.observation.figures.card import BLUE, FAINT, INK, VERMILLION, card, dress, legend
from cl_callbacks.observation.thinning import evenly

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]


def loss_and_drift(
    steps: ArrayLike,
    loss: ArrayLike,
    score: ArrayLike,
    boundaries: Sequence[float],
    onsets: Sequence[float | None],
    threshold: float | None = None,
) -> Figure:
    """Draws the loss and below it the drift score, with onset and detection of each change in both.

    Args:
        steps: steps of both curves, ``(N,)``.
        loss: loss at each step, ``(N,)``; NaN if unknown.
        score: evidence for a change at each step, ``(N,)``; NaN if unknown.
        boundaries: the steps at which a change was found, in order; numbered from 0 at the top. Of more than
            a hundred that many are drawn.
        onsets: estimated step at which each change began; ``None`` or NaN if unknown.
        threshold: the score above which a change is declared.

    Raises:
        ValueError: different lengths, or nothing to draw.

    Example:
        >>> figure = loss_and_drift([0, 1, 2], [2.0, 1.0, 3.0], [0, 0, 9], boundaries=[2], onsets=[1])
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['loss', 'drift score']
    """
    x, curves = _checked(steps, {"loss": loss, "score": score})
    if len(boundaries) != len(onsets):
        raise ValueError(
            f"onsets must be one per boundary: {len(boundaries)} boundaries, {len(onsets)} onsets; "
            "None where it is not known"
        )
    shown = evenly(len(boundaries), MOST_LINES)
    known = [
        (float(onset), float(boundary))
        for onset, boundary in ((onsets[i], boundaries[i]) for i in shown)
        if onset is not None and not math.isnan(onset)
    ]
    figure = card(7.0, 4.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    dress(above, y="loss", grid="y")
    dress(below, x="step", y="drift score", grid="y")
    thin = 1.0 if len(boundaries) <= 15 else 0.5
    for axes, curve, colour in ((above, curves["loss"], BLUE), (below, curves["score"], INK)):
        axes.plot(x, curve, color=colour, linewidth=0.9, linestyle="-", marker="none")
        axes.margins(x=0.01)
        for onset, boundary in known:
            axes.axvspan(onset, boundary, color=VERMILLION, alpha=0.25, linewidth=0, zorder=0.8)
            axes.axvline(onset, color=VERMILLION, linewidth=thin, linestyle="--", zorder=0.9)
        mark_boundaries(axes, boundaries, color=VERMILLION, linewidth=thin, linestyle="-", zorder=0.9)
    if threshold is not None:
        below.axhline(threshold, color=FAINT, linewidth=1.0, linestyle=":")
    number_boundaries(above, boundaries)
    legend(figure, _entries(bool(len(boundaries)), bool(known), threshold is not None), columns=4)
    return figure


def _checked(steps: ArrayLike, curves: dict[str, ArrayLike]) -> tuple[Array, dict[str, Array]]:
    x = np.asarray(steps, dtype=float)
    if x.size == 0:
        raise ValueError("steps is empty: there is no loss to draw")
    values = {name: np.asarray(curve, dtype=float) for name, curve in curves.items()}
    for name, curve in values.items():
        if curve.shape != x.shape or x.ndim != 1:
            raise ValueError(f"{name} must have one value per step: {x.shape} steps, {curve.shape} values")
        if not np.isfinite(curve).any():
            raise ValueError(f"{name} holds no value: nothing in it is finite")
    return x, values


def _entries(found: bool, estimated: bool, limited: bool) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries = [
        (estimated, Line2D([], [], color=VERMILLION, linewidth=1, linestyle="--", label="onset")),
        (estimated, Patch(facecolor=VERMILLION, alpha=0.25, linewidth=0, label="delay")),
        (found, Line2D([], [], color=VERMILLION, linewidth=1, linestyle="-", label="alarm")),
        (limited, Line2D([], [], color=FAINT, linewidth=1, linestyle=":", label="threshold")),
    ]
    return [entry for shown, entry in entries if shown]
