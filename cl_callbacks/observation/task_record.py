"""The scores on every task after each task, and what is computed from them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_callbacks.functional.task_matrix import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forgetting_per_task,
    forward_transfer,
    learning_accuracy,
    tasks_learned,
)

_NEED_THE_LATEST = ("forgetting", "backward_transfer", "learning")
"""The metrics that need to know which task was learned last."""


class TaskRecord:
    """Scores on every task, by number of tasks learned and by step.

    Args:
        higher_is_better: whether higher scores are better.

    Attributes:
        rows: scores of all tasks, in the order of their loaders, by number of tasks learned.
        begun: the loader of each task that has begun, in this order; ``None`` for a task without one.
            :meth:`begin` and :meth:`take_order` change it.
        assumed: whether tasks are taken to come in the order of the loaders, since nobody says so.
        curve: steps at which all tasks were scored, with the scores.
        ends: steps at which the boundary callback ended tasks.

    Example:
        >>> record = TaskRecord(higher_is_better=True)
        >>> record.begin(0); record.keep(1, [0.9, 0.1])
        >>> record.begin(1); record.keep(2, [0.5, 0.75])
        >>> record.matrix
        tensor([[   nan,    nan],
                [0.9000, 0.1000],
                [0.5000, 0.7500]], dtype=torch.float64)
        >>> record.results()["forgetting"]
        0.4
    """

    def __init__(self, higher_is_better: bool) -> None:
        self.higher_is_better = higher_is_better
        self.rows: dict[int, list[float]] = {}
        self.begun: list[int | None] = []
        self.assumed = False
        self.curve: list[tuple[int, list[float]]] = []
        self.ends: list[int] = []
        self._matrix: Tensor | None = None

    def keep(self, learned: int, scores: list[float]) -> None:
        """Stores the scores after ``learned`` tasks."""
        self.rows[learned], self._matrix = scores, None

    def begin(self, loader: int | None) -> None:
        """Notes that the task of a loader has begun; ``None`` for a task without one."""
        self.begun.append(loader)
        self._matrix = None

    def take_order(self, order: Sequence[int | None]) -> None:
        """Says which loader is whose, also of tasks that have begun."""
        self.begun, self.assumed, self._matrix = list(order[: len(self.begun)]), False, None

    def now(self, scores: list[float]) -> TaskRecord:
        """A record as it would be if the present task ended with these scores."""
        record = TaskRecord(self.higher_is_better)
        record.begun, record.assumed, record.ends = self.begun, self.assumed, self.ends
        record.rows = {**self.rows, len(self.begun): scores}
        return record

    @property
    def loaders(self) -> int:
        """The number of loaders, as far as known."""
        return max(map(len, self.rows.values()), default=0)

    @property
    def columns(self) -> list[int]:
        """Loader index of each column: the tasks begun, in this order, then those still to come."""
        begun = [task for task in dict.fromkeys(self.begun) if task is not None and task < self.loaders]
        return begun + [task for task in range(self.loaders) if task not in begun]

    @property
    def order(self) -> list[int | None]:
        """Column of each task, in the order of learning; ``None`` for one without, or that is not known."""
        order = self._order
        return [None] * len(order) if self.mismatch() else order

    @property
    def _order(self) -> list[int | None]:
        at = {task: column for column, task in enumerate(self.columns)}
        begun = [None if task is None else at.get(task) for task in self.begun]
        return begun + [None] * (max(self.rows, default=0) - len(begun))

    @property
    def matrix(self) -> Tensor:
        """Scores ``(K + 1, T)`` after each of K tasks, or T if they are more, on the T loaders; with NaN.

        See :mod:`cl_callbacks.functional.task_matrix`.
        """
        if self._matrix is None:
            columns = self.columns
            tasks = max([len(columns), *self.rows])
            self._matrix = torch.full((tasks + 1, len(columns)), math.nan, dtype=torch.float64)
            for learned, row in self.rows.items():
                self._matrix[learned] = torch.tensor(self.ordered(row), dtype=torch.float64)
        return self._matrix

    def ordered(self, scores: Sequence[float]) -> list[float]:
        """Scores of all loaders in the order of the columns; NaN for a missing one."""
        return [scores[task] if task < len(scores) else math.nan for task in self.columns]

    def table(self) -> list[list[float | None]]:
        """The measured rows of the matrix as lists, with ``None`` for NaN."""
        measured = self.matrix[: max(self.rows, default=-1) + 1]
        return [[None if math.isnan(score) else score for score in row] for row in measured.tolist()]

    def mismatch(self) -> str | None:
        """What shows that tasks do not come in the order of the loaders, which was assumed; else ``None``.

        In some task the score of another loader improved by more than a twentieth of the range of all scores,
        by more than four times as much as the score that should have, and to a better one: related tasks
        that are still to come may improve more than the task itself, but not beyond it.
        """
        if not self.assumed or self.loaders < 2:
            return None
        scores = self.matrix if self.higher_is_better else -self.matrix
        finite, rows = scores[scores.isfinite()], min(len(self.ends), len(scores) - 1)
        gains = (scores[1 : rows + 1] - scores[:rows]).nan_to_num(-math.inf, math.inf, -math.inf)
        if not gains.isfinite().any():
            return None
        most, best = gains.max(dim=1)
        least = 0.05 * float(finite.max() - finite.min())
        for task, column in enumerate(self._order[:rows]):
            other = int(best[task])
            own = 0.0 if column is None else float(gains[task, column])
            below = column is None or bool(scores[task + 1, column] < scores[task + 1, other])
            if below and math.isfinite(own) and float(most[task]) > max(least, 4 * own):
                own_loader = "no loader is left" if column is None else f"not that on {self.columns[column]}"
                loader = self.columns[other]
                return f"in task {task}, counted from 0, the score on loader {loader} improved, {own_loader}"
        return None

    def results(self) -> dict[str, float]:
        """Summary metrics of the matrix by name; NaN if not yet defined, or unknown for lack of an order."""
        matrix, higher, order = self.matrix, self.higher_is_better, self.order
        figures = {
            "average": average_accuracy(matrix, order),
            "forgetting": forgetting(matrix, higher, order),
            "backward_transfer": backward_transfer(matrix, higher, order),
            "forward_transfer": forward_transfer(matrix, higher, order),
            "learning": learning_accuracy(matrix, order),
        }
        unknown = _NEED_THE_LATEST if self.is_beyond_loaders else ()
        return {name: math.nan if name in unknown else value.item() for name, value in figures.items()}

    @property
    def is_beyond_loaders(self) -> bool:
        """Whether more tasks were learned than there are loaders, and nobody says which they are."""
        return self.assumed and max(self.rows, default=0) > self.loaders

    def of_tasks(self, names: Sequence[str]) -> dict[str, float]:
        """Score and forgetting of each task learned, where they are defined."""
        learned, order = tasks_learned(self.matrix, self.order), self.order
        known = {column for column in order[:learned] if column is not None}
        scores, lost = self.matrix[learned].tolist(), self._lost().tolist()
        found: dict[str, float] = {}
        for what, values in (("score", scores), ("forgetting", lost)):
            found |= {f"{what}/{names[column]}": values[column] for column in sorted(known)}
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def worst(self) -> tuple[int, float] | None:
        """Column and forgetting of the task that was forgotten most; ``None`` before any can be."""
        lost = self._lost()
        if lost.isnan().all():
            return None
        task = int(lost.nan_to_num(-math.inf).argmax())
        return task, lost[task].item()

    def _lost(self) -> Tensor:
        lost = forgetting_per_task(self.matrix, self.higher_is_better, self.order)
        return lost.fill_(math.nan) if self.is_beyond_loaders else lost

    def write(
        self, folder: Path, about: dict[str, Any], names: Sequence[str], file_name: str = "task_matrix"
    ) -> list[Path]:
        """Writes ``task_matrix.json``, with further entries ``about``, and ``task_matrix.csv``.

        In the former, ``order`` is the column of each task, in the order of learning. The folder is created
        if needed; ``names`` are those of the columns.
        """
        folder.mkdir(parents=True, exist_ok=True)
        rows = self.table()
        results = {name: None if math.isnan(v) else v for name, v in self.results().items()}
        found = about | {"matrix": rows, "order": self.order, "results": results, "task_ends": self.ends}
        as_json, as_csv = folder / f"{file_name}.json", folder / f"{file_name}.csv"
        as_json.write_text(json.dumps(found))
        with as_csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["tasks_learned", *names])
            writer.writerows([learned, *row] for learned, row in enumerate(rows))
        return [as_json, as_csv]

    def state_dict(self) -> dict[str, Any]:
        """Numbers only."""
        kept = {"rows": dict(self.rows), "begun": list(self.begun), "assumed": self.assumed}
        return kept | {"curve": list(self.curve), "ends": list(self.ends)}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the state that :meth:`state_dict` returned."""
        self.rows, self.begun, self.assumed = dict(state["rows"]), list(state["begun"]), state["assumed"]
        self.curve, self.ends, self._matrix = list(state["curve"]), list(state["ends"]), None
