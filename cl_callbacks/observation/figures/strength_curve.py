"""A figure of the scores on two tasks over the strength of a rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cl_callbacks.observation.figures.card import BLUE, EDGE, INK, TEXT, VERMILLION, card, dress, legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def strength_curve(
    factors: Sequence[float],
    old: Sequence[float],
    new: Sequence[float],
    average: Sequence[float],
    best: int,
    *,
    learned: float | None = None,
    monitor: str = "accuracy",
) -> Figure:
    """Draws the scores on an old and a new task, and their average, over factors of the strength.

    Args:
        factors: ``(n,)``, positive and rising; on a logarithmic axis.
        old: score on the old task for each factor; one that is NaN leaves a gap.
        new: score on the new task.
        average: by which the best factor was chosen.
        best: index of the factor to mark.
        learned: score on the old task before the new one was learned, a horizontal line.
        monitor: name of the score.

    Raises:
        ValueError: lists of different lengths.

    Example:
        >>> figure = strength_curve([0.1, 1.0], [0.5, 0.8], [0.9, 0.8], [0.7, 0.8], best=1, learned=0.95)
        >>> [line.get_label() for line in figure.axes[0].lines][:3]
        ['old task', 'new task', 'average']
    """
    if not len(factors) == len(old) == len(new) == len(average):
        raise ValueError(
            f"each factor has a score on both tasks and an average; got {len(factors)} factors, {len(old)}, "
            f"{len(new)} and {len(average)} scores"
        )
    figure = card(5.0, 3.6)
    axes = figure.add_subplot()
    dress(axes, x="factor of the strength", y=monitor, grid="y")
    style: dict[str, Any] = {"linestyle": "-", "marker": "o", "markersize": 3.5}
    curves = [
        ("old task", old, BLUE, 1.2),
        ("new task", new, VERMILLION, 1.2),
        ("average", average, INK, 2.0),
    ]
    lines = [
        axes.plot(factors, scores, color=colour, linewidth=width, label=label, **style)[0]
        for label, scores, colour, width in curves
    ]
    if learned is not None:
        axes.axhline(learned, color=BLUE, linewidth=0.8, linestyle=":", label="old task before the new one")
        lines.append(axes.lines[-1])
    axes.axvline(factors[best], color=EDGE, linewidth=0.8, zorder=0.9)
    axes.set_xscale("log")
    axes.set_xticks(list(factors), labels=[f"{factor:g}" for factor in factors], fontsize=TEXT)
    axes.minorticks_off()
    legend(figure, lines, columns=2)
    return figure
