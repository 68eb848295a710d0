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


class TaskRecord:
    """Scores on every task, by number of tasks learned and by step.

    Args:
        higher_is_better: whether higher scores are better.

    Attributes:
        rows: scores of all tasks, in the order of their loaders, by number of tasks learned.
        learned: the tasks learned, in this order.
        curve: steps at which all tasks were scored, with the scores.
        ends: steps at which the boundary callback ended tasks.

    Example:
        >>> record = TaskRecord(higher_is_better=True)
        >>> record.keep(1, [0.9, 0.1]); record.learned.append(0)
        >>> record.keep(2, [0.5, 0.75]); record.learned.append(1)
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
        self.learned: list[int] = []
        self.curve: list[tuple[int, list[float]]] = []
        self.ends: list[int] = []
        self._matrix: Tensor | None = None

    def keep(self, learned: int, scores: list[float]) -> None:
        """Stores the scores after ``learned`` tasks."""
        self.rows[learned], self._matrix = scores, None

    @property
    def columns(self) -> list[int]:
        """Loader index of each column: the tasks learned, in this order, then those still to come."""
        loaders = max(map(len, self.rows.values()), default=0)
        learned = [task for task in dict.fromkeys(self.learned) if 0 <= task < loaders]
        return learned + [task for task in range(loaders) if task not in learned]

    @property
    def matrix(self) -> Tensor:
        """The task matrix ``(T + 1, T)``, with NaN; see :mod:`cl_callbacks.functional.task_matrix`."""
        if self._matrix is None:
            columns = self.columns
            tasks = max([len(columns), *self.rows])
            self._matrix = torch.full((tasks + 1, tasks), math.nan, dtype=torch.float64)
            for learned, row in self.rows.items():
                self._matrix[learned, : len(columns)] = torch.tensor(self.ordered(row), dtype=torch.float64)
        return self._matrix

    def ordered(self, scores: Sequence[float]) -> list[float]:
        """Scores of all loaders in the order of the columns; NaN for a missing one."""
        return [scores[task] if task < len(scores) else math.nan for task in self.columns]

    def table(self) -> list[list[float | None]]:
        """The measured rows of the matrix as lists, with ``None`` for NaN."""
        measured = self.matrix[: max(self.rows, default=-1) + 1, : len(self.columns)]
        return [[None if math.isnan(score) else score for score in row] for row in measured.tolist()]

    def results(self) -> dict[str, float]:
        """Summary metrics of the matrix by name; NaN if not yet defined."""
        matrix, higher = self.matrix, self.higher_is_better
        figures = {
            "average": average_accuracy(matrix),
            "forgetting": forgetting(matrix, higher),
            "backward_transfer": backward_transfer(matrix, higher),
            "forward_transfer": forward_transfer(matrix, higher),
            "learning": learning_accuracy(matrix),
        }
        return {name: value.item() for name, value in figures.items()}

    def of_tasks(self, names: Sequence[str]) -> dict[str, float]:
        """Score and forgetting of each task learned, where they are defined."""
        matrix = self.matrix
        learned = tasks_learned(matrix)
        lost = forgetting_per_task(matrix, self.higher_is_better).tolist()
        found: dict[str, float] = {}
        for what, values in (("score", matrix[learned, :learned].tolist()), ("forgetting", lost)):
            found |= {f"{what}/{name}": value for name, value in zip(names, values, strict=False)}
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def worst(self) -> tuple[int, float] | None:
        """Column and forgetting of the task that was forgotten most; ``None`` before any can be."""
        lost = forgetting_per_task(self.matrix, self.higher_is_better)
        if lost.isnan().all():
            return None
        task = int(lost.nan_to_num(-math.inf).argmax())
        return task, lost[task].item()

    def write(self, folder: Path, about: dict[str, Any], names: Sequence[str]) -> list[Path]:
        """Writes ``task_matrix.json``, with further entries ``about``, and ``task_matrix.csv``.

        The folder is created if needed; ``names`` are those of the columns.
        """
        folder.mkdir(parents=True, exist_ok=True)
        rows = self.table()
        results = {name: None if math.isnan(v) else v for name, v in self.results().items()}
        found = about | {"matrix": rows, "results": results, "task_ends": self.ends}
        as_json, as_csv = folder / "task_matrix.json", folder / "task_matrix.csv"
        as_json.write_text(json.dumps(found))
        with as_csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["tasks_learned", *names])
            writer.writerows([learned, *row] for learned, row in enumerate(rows))
        return [as_json, as_csv]

    def state_dict(self) -> dict[str, Any]:
        """Numbers only."""
        kept = {"rows": dict(self.rows), "learned": list(self.learned)}
        return kept | {"curve": list(self.curve), "ends": list(self.ends)}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the state that :meth:`state_dict` returned."""
        self.rows, self.learned = dict(state["rows"]), list(state["learned"])
        self.curve, self.ends, self._matrix = list(state["curve"]), list(state["ends"]), None
