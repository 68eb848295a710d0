"""The task matrix as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from cl_callbacks.functional.task_matrix import Order, tasks_learned
from cl_callbacks.observation.figures.labels import cut, every

if TYPE_CHECKING:
    from rich.table import Table

_ROOM, _NAME = 8, 12


def task_table(matrix: Tensor, names: Sequence[str], title: str, order: Order | None = None) -> Table:
    """A table of scores on each task (column) after learning each (row), thinned out if there are many.

    Made from the task matrix ``(T + 1, T)``, or with an ``order`` one with a row for each task learned (see
    :mod:`cl_callbacks.functional.task_matrix`). Columns are headed by the tasks' numbers, rows by their
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

    tasks, learned = len(names), tasks_learned(matrix, order)
    order = range(tasks) if order is None else order
    shown = sorted({*range(0, tasks, every(tasks, room=_ROOM)), tasks - 1})
    numbers = [str(task) for task in range(tasks)]
    pairs = zip(numbers, names, strict=True)
    named = [n if n == name else f"{n} {escape(cut(name, _NAME))}" for n, name in pairs]
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("after", no_wrap=True)
    for task in shown:
        table.add_column(numbers[task], justify="right", no_wrap=True, min_width=5)
    rows = {0, *range(1, learned + 1, every(learned, room=_ROOM)), learned}
    for row in sorted(row for row in rows if not matrix[row].isnan().all()):
        latest = order[row - 1] if row else None
        cells = (_cell(matrix[row, task].item(), task in order[:row], task == latest) for task in shown)
        table.add_row("—" if row == 0 else str(row - 1) if latest is None else named[latest], *cells)
    return table


def _cell(score: float, learned: bool, latest: bool) -> str:
    if score != score:
        return ""
    text = f"{score:.3f}" if abs(score) < 10 else f"{score:.4g}"
    return f"[bold]{text}[/]" if latest else text if learned else f"[dim]{text}[/]"
