"""The task matrix as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from cl_callbacks.functional.task_matrix import Order
from cl_callbacks.observation.figures.labels import every, row_names

if TYPE_CHECKING:
    from rich.table import Table

_ROOM = 8


def task_table(
    matrix: Tensor,
    names: Sequence[str],
    title: str,
    order: Order | None = None,
    rows: Sequence[int] | None = None,
) -> Table:
    """A table of scores on each task (column) after learning each (row), thinned out if there are many.

    Made from the task matrix ``(T + 1, T)``, or with an ``order`` one with a row for each task learned (see
    :mod:`cl_callbacks.functional.task_matrix`); of a matrix without some rows, ``rows`` are the numbers of
    tasks learned at those that it has. Columns are headed by the tasks' numbers, rows by their
    numbers and names.

    Example:
        >>> import torch
        >>> nan = float("nan")
        >>> matrix = torch.tensor([[nan, nan], [0.9, 0.1], [0.5, 0.75]])
        >>> table = task_table(matrix, ["0", "1"], "accuracy")
        >>> table.row_count, len(table.columns)
        (2, 3)
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    tasks = len(names)
    rows = range(len(matrix)) if rows is None else rows
    order = range(tasks) if order is None else order
    at = {learned: i for i, learned in enumerate(rows) if not matrix[i].isnan().all()}
    shown = sorted({*range(0, tasks, every(tasks, room=_ROOM)), tasks - 1})
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("after", no_wrap=True)
    for task in shown:
        table.add_column(str(task), justify="right", no_wrap=True, min_width=5)
    later = sorted(at.keys() - {0})
    shown_rows = [*(at.keys() & {0}), *_some(later)]
    for row, name in zip(shown_rows, row_names(shown_rows, names, order), strict=True):
        latest = order[row - 1] if row else None
        scores = matrix[at[row]]
        cells = (_cell(scores[task].item(), task in order[:row], task == latest) for task in shown)
        table.add_row(escape(name), *cells)
    return table


def _some(rows: list[int]) -> list[int]:
    """Rows at a round interval, and the last."""
    return sorted({*rows[:: every(len(rows), room=_ROOM)], *rows[-1:]})


def _cell(score: float, learned: bool, latest: bool) -> str:
    if score != score:
        return ""
    text = f"{score:.3f}" if abs(score) < 10 else f"{score:.4g}"
    return f"[bold]{text}[/]" if latest else text if learned else f"[dim]{text}[/]"
