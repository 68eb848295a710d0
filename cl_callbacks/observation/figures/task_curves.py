"""A figure of the score on each task over training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from cl_callbacks.observation.figures.boundary_numbers import mark_boundaries, number_boundaries
from cl_callbacks.observation.figures.card import EDGE, PAPER, TEXT, card, dress
from cl_callbacks.observation.figures.labels import every, shortened, spread_apart
from cl_callbacks.observation.thinning import evenly

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]
MOST_LABELS = 10
MOST_MARKERS = 40
MOST_CURVES = 100
_LEADER = {"arrowstyle": "-", "lw": 0.6, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 2}


def task_curves(
    steps: ArrayLike,
    scores: ArrayLike,
    boundaries: Sequence[float] = (),
    *,
    names: Sequence[str] | None = None,
    monitor: str = "accuracy",
    order: Sequence[int | None] | None = None,
) -> Figure:
    """Draws the score on each task over training, from dark for the first task to light for the last.

    A curve is pale until the previous task has ended, since its own task was not learned until then.
    Up to ten tasks are named at the ends of their curves, more on a colour bar. Of more than a hundred tasks
    that many are drawn, evenly chosen.

    Args:
        steps: steps at which scores were measured, ``(N,)``, rising.
        scores: scores ``(N, T)``, NaN where a task was not measured; curves are interpolated linearly.
        boundaries: the steps at which tasks ended, in order; numbered from 0 at the top.
        names: names of the tasks; default: their numbers, from 0.
        monitor: name of the score.
        order: column of the task that was learned first, second and so on, ``None`` for one without, if they
            are not 0, 1, 2 ….

    Raises:
        ValueError: incompatible shapes, or nothing measured.

    Example:
        >>> nan = float("nan")
        >>> figure = task_curves([0, 10, 20], [[0.1, nan], [0.9, 0.2], [0.7, 0.9]], boundaries=[10, 20])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['task 0', 'task 1']
    """
    x, y = _checked(steps, scores, names)
    tasks = y.shape[1]
    figure = card(7.0, 4.0)
    axes = figure.add_subplot()
    dress(axes, x="step", y=monitor, grid="y")
    colours = _by_age(tasks)
    few = tasks <= MOST_LABELS
    style: dict[str, Any] = {"linestyle": "-", "linewidth": 1.6 if few else 0.9, "markersize": 3}
    style["marker"] = "o" if few and len(x) <= MOST_MARKERS else "none"
    learned_at: dict[int | None, int] = {}
    for position, column in enumerate(range(tasks) if order is None else order):
        learned_at.setdefault(column, position)
    for task in evenly(tasks, MOST_CURVES):
        measured = np.isfinite(y[:, task])
        at, score = x[measured], y[measured, task]
        position = learned_at.get(task, 0)
        begins = boundaries[position - 1] if 0 < position <= len(boundaries) else -np.inf
        since = int(np.searchsorted(at, begins, side="right"))
        if since > 0:
            axes.plot(at[:since], score[:since], color=_pale(colours[task]), zorder=1.5, **style)
        learned = slice(max(since - 1, 0), None)
        axes.plot(at[learned], score[learned], color=colours[task], **style)
    mark_boundaries(axes, boundaries, color=EDGE, linewidth=0.8 if len(boundaries) <= 15 else 0.5, zorder=0.9)
    axes.margins(x=0.02)
    number_boundaries(axes, boundaries)
    if few:
        _name_ends(axes, x, y, colours, names)
    else:
        _add_scale(figure, axes, tasks, names)
    return figure


def _checked(steps: ArrayLike, scores: ArrayLike, names: Sequence[str] | None) -> tuple[Array, Array]:
    x, y = np.asarray(steps, dtype=float), np.asarray(scores, dtype=float)
    if x.size == 0:
        raise ValueError("steps is empty: there is no score to draw")
    if x.ndim != 1 or y.ndim != 2 or len(x) != len(y) or y.shape[1] == 0:
        raise ValueError(
            f"scores must have a row for each step and a column for each task; "
            f"steps has the shape {x.shape}, scores {y.shape}"
        )
    if not (np.diff(x) >= 0).all():
        raise ValueError("steps must rise from each score to the next")
    if not np.isfinite(y).any():
        raise ValueError("scores holds no score: nothing in it is finite")
    if names is not None and len(names) != y.shape[1]:
        raise ValueError(f"names must be one per task: {y.shape[1]} tasks, {len(names)} names")
    return x, y


def _map_of_ages() -> Any:
    """The colour map plasma without its yellow end, which does not show on a light background."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ages", colormaps["plasma"](np.linspace(0, 0.58, 128)))


def _by_age(tasks: int) -> list[Any]:
    ages = _map_of_ages()
    return [ages(task / max(tasks - 1, 1)) for task in range(tasks)]


def _pale(colour: Any) -> Any:
    """Mixes a colour with PAPER; unlike with transparency, overlapping curves stay pale."""
    from matplotlib.colors import to_rgb

    return 0.25 * np.asarray(to_rgb(colour)) + 0.75 * np.asarray(to_rgb(PAPER))


def _name_ends(axes: Axes, x: Array, y: Array, colours: list[Any], names: Sequence[str] | None) -> None:
    """Writes each task's name to the right of its curve, moved up or down to where there is room."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    measured = {task: np.flatnonzero(np.isfinite(y[:, task])) for task in range(y.shape[1])}
    ends = {task: at[-1] for task, at in measured.items() if len(at)}
    heights = spread_apart([(y[end, task] - low) / (high - low) for task, end in ends.items()], gap=0.08)
    short = [f"task {task}" for task in range(y.shape[1])] if names is None else shortened(names, size=20)
    for (task, end), height in zip(ends.items(), heights, strict=True):
        axes.annotate(
            short[task],
            xy=(x[end], y[end, task]),
            xytext=(1.04, height),
            textcoords="axes fraction",
            va="center",
            fontsize=TEXT,
            color=colours[task],
            annotation_clip=False,
            arrowprops={**_LEADER, "color": colours[task]},
        )


def _add_scale(figure: Figure, axes: Axes, tasks: int, names: Sequence[str] | None) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    # A colour for each task up to the number that a bar can show.
    steps = np.linspace(-0.5, tasks - 0.5, min(tasks, MOST_CURVES) + 1)
    norm = BoundaryNorm(steps, len(steps) - 1)
    colours = _map_of_ages().resampled(len(steps) - 1)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, spacing="proportional")
    shown = list(range(0, tasks, every(tasks, room=10)))
    short = list(map(str, shown)) if names is None else shortened([names[task] for task in shown], size=16)
    bar.set_ticks(shown, labels=short)
    bar.minorticks_off()
    dress(bar.ax, y="task" if tasks <= MOST_CURVES else f"task ({MOST_CURVES} of {tasks} drawn)")
    bar.outline.set(edgecolor=PAPER)
