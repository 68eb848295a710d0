"""The scores on every task after each task, and what is computed from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from cl_callbacks.guards.few import few
from cl_callbacks.observation.known_scores import KnownScores
from cl_callbacks.observation.left_out import LeftOut
from cl_callbacks.observation.thinning import most_crowded, rows_kept

_T = TypeVar("_T")

_NEED_THE_LATEST = ("forgetting", "backward_transfer", "learning")
"""The metrics that need to know which task was learned last."""


class TaskRecord:
    """Scores on every task, by number of tasks learned and by step.

    Memory and time are linear in the number of tasks: of many (362 with a loader each) rows are left out
    evenly, but for the few scores in them on which the figures depend, so that these stay exact.

    Args:
        higher_is_better: whether higher scores are better.

    Attributes:
        rows: scores of all tasks, in the order of their loaders, by number of tasks learned, where they are
            kept whole.
        left_out: what is known of other rows.
        begun: the loader of each task that has begun, in this order; ``None`` for a task without one.
            :meth:`begin` and :meth:`take_order` change it.
        assumed: whether tasks are taken to come in the order of the loaders, since nobody says so.
        curve: steps at which all tasks were scored, with the scores; thinned out evenly if they are many.
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
        self.left_out = LeftOut(higher_is_better)
        self._changes, self._made = 0, dict[str, Any]()
        self._made_of: tuple[object, ...] = ()

    def keep(self, learned: int, scores: list[float]) -> None:
        """Stores the scores after ``learned`` tasks."""
        self.rows[learned] = scores
        self._changes += 1
        if len(self.rows) > rows_kept(len(scores)):
            kept = sorted(self.rows)
            out = kept[most_crowded(kept)]
            before, after = self._known_row(out - 1), self._known_row(out + 1)
            self.left_out.take(out, self.rows.pop(out), before, after, self.begun)

    def trace(self, step: int, scores: list[float]) -> None:
        """Adds the scores of a step to the curve."""
        self.curve.append((step, scores))
        if len(self.curve) > rows_kept(len(scores)):
            del self.curve[most_crowded([step for step, _ in self.curve])]

    def begin(self, loader: int | None) -> None:
        """Notes that the task of a loader has begun; ``None`` for a task without one."""
        self.begun.append(loader)

    def take_order(self, order: Sequence[int | None]) -> None:
        """Says which loader is whose, also of tasks that have begun.

        Raises:
            ValueError: another order than before, of which scores that it needs were left out.
        """
        begun = list(order[: len(self.begun)])
        if self.left_out.parts and begun != self.begun:
            raise ValueError(
                f"order={few(list(map(str, order)))} is another than that in which tasks were scored, and of "
                f"so many only the scores that the figures need are kept: give the order before training"
            )
        self.begun, self.assumed = begun, False
        self._changes += 1

    def now(self, scores: list[float]) -> TaskRecord:
        """A record as it would be if the present task ended with these scores."""
        record = TaskRecord(self.higher_is_better)
        record.begun, record.assumed, record.ends = self.begun, self.assumed, self.ends
        record.rows, record.left_out = {**self.rows, len(self.begun): scores}, self.left_out
        return record

    @property
    def loaders(self) -> int:
        """The number of loaders, as far as known."""
        return max([self.left_out.loaders, *map(len, self.rows.values())])

    @property
    def columns(self) -> list[int]:
        """Loader index of each column: the tasks begun, in this order, then those still to come."""
        loaders = self.loaders
        begun = dict.fromkeys(task for task in self.begun if task is not None and task < loaders)
        return [*begun, *(task for task in range(loaders) if task not in begun)]

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
    def known(self) -> KnownScores:
        """All scores that are kept, by column, and the figures of them."""
        in_order = self._in_order
        return in_order if self.order == self._order else self._known([None] * len(self.order))

    @property
    def _in_order(self) -> KnownScores:
        """As if the order that is assumed were right."""
        return self._once("in order", lambda: self._known(self._order))

    def _known(self, order: list[int | None]) -> KnownScores:
        others = self.left_out.rows()
        rows: dict[int, list[float] | dict[int, float]] = {**others, **self.rows}
        numbers = sorted(rows)
        sizes = np.array([len(rows[learned]) for learned in numbers], dtype=np.int64)
        loaders, scores = list[int](), list[float]()
        for learned in numbers:
            row = rows[learned]
            loaders += range(len(row)) if isinstance(row, list) else row
            scores += row if isinstance(row, list) else row.values()
        columns, place = self.columns, torch.empty(self.loaders, dtype=torch.long)
        place[torch.tensor(columns, dtype=torch.long)] = torch.arange(len(columns))
        return KnownScores(
            torch.from_numpy(np.repeat(np.array(numbers, dtype=np.int64), sizes)),
            place[torch.from_numpy(np.array(loaders, dtype=np.int64))],
            torch.from_numpy(np.array(scores, dtype=np.float64)),  # faster from a list than torch.tensor
            len(columns),
            order,
            self.higher_is_better,
        )

    def _once(self, what: str, make: Callable[[], _T]) -> _T:
        """What a function returns, from the last time if nothing has changed since."""
        state = (self._changes, len(self.begun), len(self.ends), self.assumed, len(self.rows))
        if state != self._made_of:
            self._made, self._made_of = {}, state
        if what not in self._made:
            self._made[what] = make()
        return self._made[what]

    def _known_row(self, learned: int) -> dict[int, float]:
        """What is known of the scores after ``learned`` tasks, by loader."""
        row = self.rows.get(learned)
        return self.left_out.parts.get(learned, {}) if row is None else dict(enumerate(row))

    @property
    def matrix(self) -> Tensor:
        """Scores ``(K + 1, T)`` after each of K tasks, or T if they are more, on the T loaders; with NaN.

        See :mod:`cl_callbacks.functional.task_matrix`. It is made anew, whole, and as large as the square of
        the tasks; scores that are not kept are NaN.
        """
        rows, columns, scores = self.known.entries
        found = torch.full((self._ends + 1, len(self.columns)), math.nan, dtype=torch.float64)
        return found.index_put((rows, columns), scores)

    @property
    def _ends(self) -> int:
        """The number of tasks that there are, as far as known: loaders, or tasks learned."""
        return max([self.loaders, *self.rows])

    def ordered(self, rows: Sequence[Sequence[float]]) -> list[list[float]]:
        """Scores of all loaders in the order of the columns, in each row; NaN for a missing one."""
        columns = self.columns
        return [[row[task] if task < len(row) else math.nan for task in columns] for row in rows]

    @property
    def tasks_learned(self) -> list[int]:
        """The number of tasks learned of each row of :meth:`table`."""
        return [k for k in range(max(self.rows, default=-1) + 1) if k not in self.left_out.parts]

    def table(self) -> list[list[float | None]]:
        """Scores by column of the rows that are kept whole; ``None`` for NaN."""
        rows = self.ordered([self.rows.get(learned, []) for learned in self.tasks_learned])
        return [[None if math.isnan(score) else score for score in row] for row in rows]

    def stripes(self) -> tuple[list[int], list[list[float]]]:
        """The rows that are kept whole, for a picture: numbers of tasks learned, and scores by column.

        Each stands for the rows up to the next. Rows that were not measured are NaN.
        """
        found: dict[int, list[float]] = {}
        following = 0
        for learned in [*sorted(self.rows), self._ends + 1]:
            lost = next((k for k in range(following, learned) if k not in self.left_out.parts), None)
            if lost is not None:
                found[lost] = []
            if learned in self.rows:
                found[learned] = self.rows[learned]
            following = learned + 1
        return list(found), self.ordered(list(found.values()))

    def mismatch(self) -> str | None:
        """What shows that tasks do not come in the order of the loaders, which was assumed; else ``None``.

        In some task the score of another loader improved by more than a twentieth of the range of all scores,
        by more than four times as much as the score that should have, and to a better one: related tasks
        that are still to come may improve more than the task itself, but not beyond it.
        """
        if not self.assumed or self.loaders < 2:
            return None
        return self._once("mismatch", self._contradiction)

    def _contradiction(self) -> str | None:
        known = self._in_order
        scores = known.entries[2]
        finite = torch.cat(
            [scores[scores.isfinite()], torch.tensor(self.left_out.range, dtype=torch.float64)]
        )
        if not len(finite):
            return None
        found = known.contradiction(len(self.ends), 0.05 * float(finite.max() - finite.min()))
        if found is None:
            return None
        task, column = found
        own = self._order[task] if task < len(self._order) else None
        own_loader = "no loader is left" if own is None else f"not that on {self.columns[own]}"
        loader = self.columns[column]
        return f"in task {task}, counted from 0, the score on loader {loader} improved, {own_loader}"

    def results(self) -> dict[str, float]:
        """Summary metrics of the matrix by name; NaN if not yet defined, or unknown for lack of an order."""
        unknown = _NEED_THE_LATEST if self.is_beyond_loaders else ()
        return self.known.results() | dict.fromkeys(unknown, math.nan)

    @property
    def is_beyond_loaders(self) -> bool:
        """Whether more tasks were learned than there are loaders, and nobody says which they are."""
        return self.assumed and max(self.rows, default=0) > self.loaders

    def of_tasks(self, names: Sequence[str]) -> dict[str, float]:
        """Score and forgetting of each task learned, where they are defined."""
        known = self.known
        columns = sorted({column for column in self.order[: known.learned] if column is not None})
        found: dict[str, float] = {}
        for what, values in (("score", known.latest.tolist()), ("forgetting", self._lost().tolist())):
            found |= {f"{what}/{names[column]}": values[column] for column in columns}
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def worst(self) -> tuple[int, float] | None:
        """Column and forgetting of the task that was forgotten most; ``None`` before any can be."""
        lost = self._lost()
        if lost.isnan().all():
            return None
        task = int(lost.nan_to_num(-math.inf).argmax())
        return task, lost[task].item()

    def _lost(self) -> Tensor:
        lost = self.known.forgetting
        return torch.full_like(lost, math.nan) if self.is_beyond_loaders else lost

    def state_dict(self) -> dict[str, Any]:
        """Numbers only."""
        kept = {"rows": dict(self.rows), "begun": list(self.begun), "assumed": self.assumed}
        return kept | {
            "curve": list(self.curve),
            "ends": list(self.ends),
            "left_out": self.left_out.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the state that :meth:`state_dict` returned."""
        self.rows, self.begun, self.assumed = dict(state["rows"]), list(state["begun"]), state["assumed"]
        self.curve, self.ends = list(state["curve"]), list(state["ends"])
        self.left_out.restore(state["left_out"])
        self._changes += 1
