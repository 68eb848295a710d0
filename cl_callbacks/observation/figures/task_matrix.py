"""A figure of the task matrix: the score on every task after each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from cl_callbacks.observation.figures.card import (
    EDGE,
    FAINT,
    INK,
    PAPER,
    TEXT,
    VERMILLION,
    card,
    dress,
    legend,
)
from cl_callbacks.observation.figures.labels import every, plain, row_names, shortened
from cl_callbacks.observation.thinning import evenly

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

MOST_NUMBERS = 12
MOST_CELLS = 512


def accuracy_matrix(
    matrix: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    mode: Literal["max", "min"] = "max",
    title: str | None = None,
    order: Sequence[int | None] | None = None,
    rows: Sequence[int] | None = None,
) -> Figure:
    """Draws the scores on every task after each task; brighter is better.

    The task just learned is outlined, missing scores are hatched. With up to twelve tasks the scores are
    written into the cells.

    Args:
        matrix: task matrix ``(T + 1, T)``; row k holds the scores after k tasks, row 0 those before any
            training. NaN where nothing was measured.
        names: names of the tasks; default: their numbers, from 0.
        mode: ``"max"`` if higher scores are better, ``"min"`` if lower ones are.
        title: title above the matrix.
        order: column of the task that was learned first, second and so on, ``None`` for one without, if they
            are not 0, 1, 2 …; the matrix then has any number of rows.
        rows: of a matrix without some rows, the number of tasks learned at each that it has, rising. Each is
            drawn down to the next, the last down to the number of tasks.

    Raises:
        ValueError: invalid arguments, or nothing measured.

    Example:
        >>> nan = float("nan")
        >>> figure = accuracy_matrix([[0.1, nan], [0.9, 0.2], [0.8, 0.9]], names=["digits", "letters"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['0.10', '0.90', '0.20', '0.80', '0.90']
    """
    values = _checked(matrix, names, mode, order, rows)
    tasks, numbers = values.shape[1], range(len(values)) if rows is None else rows
    ends = max(numbers[-1], 0 if rows is None else tasks) + 1
    width, height = (min(max(0.52 * tasks, 2.6), 6.2), min(max(0.4 * (ends - 1), 1.8), 5.2))
    figure = card(width + 1.8, height + (1.5 if title else 1.2))
    axes = figure.add_subplot()
    dress(axes, x="score on task", y="after task", title=title)
    missing = bool(np.isnan(values).any())
    handles = _mark(axes, (ends, tasks), missing, range(tasks) if order is None else order)
    low, high = _limits(values, mode)
    # No more cells than the picture has room for.
    lines = np.searchsorted(numbers, evenly(ends, MOST_CELLS), side="right") - 1
    cells = values[lines][:, evenly(tasks, MOST_CELLS)]
    image = axes.imshow(
        np.ma.masked_where(np.isnan(cells), cells),
        extent=(-0.5, tasks - 0.5, ends - 0.5, -0.5),
        cmap="viridis" if mode == "max" else "viridis_r",
        vmin=low,
        vmax=high,
        aspect="auto",
        interpolation="nearest",
        zorder=1,
    )
    _label_tasks(axes, ends, tasks, names, order)
    if max(tasks, ends - 1) <= MOST_NUMBERS:
        _write_numbers(axes, image, cells)
    bar = figure.colorbar(image, ax=axes)
    dress(bar.ax, y="higher is better" if mode == "max" else "lower is better")
    bar.outline.set(edgecolor=FAINT, linewidth=0.8)
    legend(figure, handles, columns=2)
    return figure


def _checked(
    matrix: ArrayLike,
    names: Sequence[str] | None,
    mode: str,
    order: Sequence[int | None] | None,
    rows: Sequence[int] | None,
) -> np.ndarray[Any, Any]:
    values = np.asarray(matrix, dtype=float)
    if values.size == 0:
        raise ValueError("matrix is empty: there is no score to draw")
    if rows is not None and (len(rows) != len(values) or rows[0] != 0 or (np.diff(rows) < 1).any()):
        raise ValueError(
            f"rows must be rising numbers from 0, one per row: {len(values)} rows, {len(rows)} numbers"
        )
    if values.ndim != 2 or (order is None and rows is None and values.shape[0] != values.shape[1] + 1):
        raise ValueError(
            f"matrix must have one row more than tasks, (T + 1, T), row 0 before any training; "
            f"its shape is {values.shape}"
        )
    if np.isnan(values).all():
        raise ValueError("matrix holds no score: everything in it is NaN")
    if names is not None and len(names) != values.shape[1]:
        raise ValueError(f"names must be one per task: {values.shape[1]} tasks, {len(names)} names")
    if mode not in ("max", "min"):
        raise ValueError(f"mode must be 'max' or 'min'; got {mode!r}")
    return values


def _limits(values: np.ndarray[Any, Any], mode: str) -> tuple[float, float]:
    """Limits of the colour scale: 0 to 1 for accuracies, else the range of the scores."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if mode == "max" and low >= 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _mark(axes: Axes, shape: tuple[int, int], missing: bool, order: Sequence[int | None]) -> list[Any]:
    """Outlines tasks just learned and hatches missing scores; returns the legend handles for both."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Patch, Rectangle

    rows, tasks = shape
    learned = [(task, row) for row, task in enumerate(order[: rows - 1], 1) if task is not None]
    cells = [Rectangle((task - 0.5, row - 0.5), 1, 1) for task, row in learned]
    edge = 1.8 if tasks <= MOST_NUMBERS else 0.7
    outline = PatchCollection(cells, facecolor="none", edgecolor=VERMILLION, linewidth=edge, zorder=3)
    axes.add_collection(outline, autolim=False)
    outline.set_clip_on(False)
    handles = [Patch(facecolor="none", edgecolor=VERMILLION, linewidth=1.8, label="just learned")]
    if missing:
        empty = {"facecolor": PAPER, "edgecolor": EDGE, "hatch": "////", "linewidth": 0.0}
        axes.add_patch(Rectangle((-0.5, -0.5), tasks, rows, zorder=0, **empty))  # type: ignore[arg-type]
        handles.append(Patch(label="not measured", **empty))  # type: ignore[arg-type]
    return handles


def _label_tasks(
    axes: Axes, rows: int, tasks: int, names: Sequence[str] | None, order: Sequence[int | None] | None
) -> None:
    shown = range(0, tasks, every(tasks, room=13))
    after = range(0, rows, every(rows, room=14))
    named = row_names(after, names or [str(task) for task in range(tasks)], order)
    axes.set_yticks(after, labels=list(map(plain, named)))
    if names is None:
        axes.set_xticks(shown, labels=[str(task) for task in shown])
    else:
        short = shortened([names[task] for task in shown], size=16)
        upright = max(map(len, short)) * min(tasks, 13) > 28
        axes.set_xticks(shown, labels=short, rotation=90 if upright else 0)


def _write_numbers(axes: Axes, image: AxesImage, values: np.ndarray[Any, Any]) -> None:
    finite = np.abs(values[np.isfinite(values)])
    largest = finite.max() if finite.size else 0.0
    form = ".2f" if largest < 100 else ".0f" if largest < 10_000 else ".0e"
    for (row, task), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour, text = _readable_on(image.cmap(image.norm(value))), format(value, form)
            axes.text(task, row, text, ha="center", va="center", fontsize=TEXT - 0.5, color=colour)


def _readable_on(colour: ArrayLike) -> str:
    """The dark or the light text colour, by the relative luminance (WCAG) of the background."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.asarray(colour)[:3]]
    return INK if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.2 else PAPER
