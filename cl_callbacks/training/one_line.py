"""Keeps Rich's progress bar on one line of a narrow terminal."""

from __future__ import annotations

from functools import partial

from lightning.pytorch.callbacks import RichProgressBar
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn
from rich.table import Column


def keep_on_one_line(bar: RichProgressBar) -> None:
    """Has the bar give way to what is beside it, where that keeps times and metrics on one line.

    Rich takes from its widest columns first: it would break those while there is bar left to shorten.
    """
    if (progress := bar.progress) is None:
        return
    for column in _beside_the_bar(progress):
        column.get_table_column = partial(_table_column, progress)  # type: ignore[method-assign]


def _beside_the_bar(progress: Progress) -> list[ProgressColumn]:
    return [c for c in progress.columns if isinstance(c, ProgressColumn) and not isinstance(c, BarColumn)]


def _table_column(progress: Progress) -> Column:
    needed = sum(_width(progress, column) for column in _beside_the_bar(progress)) + len(progress.columns)
    return Column(no_wrap=needed <= progress.console.width)  # of which one for each gap, and one for the bar


def _width(progress: Progress, column: ProgressColumn) -> int:
    console, tasks = progress.console, [task for task in progress.tasks if task.visible]
    return max((Measurement.get(console, console.options, column(t)).maximum for t in tasks), default=0)
