"""The figures of a task matrix of which only some scores are kept, in time linear in these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor


class KnownScores:
    """The scores that are kept of a task matrix, one by one, and the figures that follow from them.

    The equations are those of :mod:`cl_callbacks.functional.task_matrix`, where scores that are not kept
    are NaN; the two agree to the last bit. Scores that are NaN are left out.

    Args:
        rows: number of tasks learned of each score, ``(N,)``, rising.
        columns: column of each, ``(N,)``.
        scores: the scores, ``(N,)``.
        width: the number of columns.
        order: column of each task, in the order of learning; ``None`` for one without. At least as many as
            tasks were learned.
        higher_is_better: whether higher scores are better.

    Attributes:
        entries: rows, columns and scores that are measured.
        learned: the number of tasks learned: the last row in which anything was measured.

    Example:
        >>> rows, columns = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> scores = torch.tensor([0.1, 0.1, 0.9, 0.3, 0.5, 0.75], dtype=torch.float64)
        >>> KnownScores(rows, columns, scores, 2, [0, 1], higher_is_better=True).results()["forgetting"]
        0.4
    """

    def __init__(
        self,
        rows: Tensor,
        columns: Tensor,
        scores: Tensor,
        width: int,
        order: Sequence[int | None],
        higher_is_better: bool,
    ) -> None:
        measured = ~scores.isnan()
        self.entries = self._row, self._column, self._score = (
            rows[measured],
            columns[measured],
            scores[measured],
        )
        self._columns, self._sign = width, 1 if higher_is_better else -1
        self.learned = int(self._row[-1]) if len(self._row) else 0
        known = [-1 if column is None else column for column in order[: self.learned]]
        self._learns = torch.tensor([-1, *known], dtype=torch.long)  # by row
        after = (self._learns >= 0).nonzero().flatten()
        nowhere = torch.full((width,), -1)
        # Row just after each column's task was learned first and last; -1 if it was not.
        self._first = nowhere.scatter_reduce(0, self._learns[after], after, "amin", include_self=False)
        self._last = nowhere.scatter_reduce(0, self._learns[after], after, "amax", include_self=False)
        self._earlier = (self._last > 0) & (self._last < self.learned)

    def results(self) -> dict[str, float]:
        """Summary metrics by name; NaN if not defined."""
        now, baseline = self.latest, self._at(torch.zeros_like(self._first))
        later = self._first > 1
        change = self._sign * (now - self._at(self._last))
        head_start = self._sign * (self._at(self._first - 1) - baseline)
        own = (self._learns[self._row] == self._column) & (self._row > 0)
        found = {
            "average": now[self._last > 0],
            "forgetting": self.forgetting,
            "backward_transfer": change[self._earlier],
            "forward_transfer": head_start[later],
            "learning": self._score[own],
        }
        return {name: values.nanmean().item() for name, values in found.items()}

    @cached_property
    def latest(self) -> Tensor:
        """The score of each column after the latest task, ``(columns,)``; NaN if not measured."""
        return self._at(torch.full_like(self._first, self.learned))

    @cached_property
    def forgetting(self) -> Tensor:
        """The forgetting of each column, ``(columns,)``; NaN if not defined."""
        row, column = self._row, self._column
        counts = self._earlier[column] & (self._first[column] <= row) & (row < self.learned)
        best = torch.full_like(self.latest, math.nan).scatter_reduce(
            0, column[counts], self._sign * self._score[counts], "amax", include_self=False
        )
        return best - self._sign * self.latest

    def contradiction(self, ended: int, least: float) -> tuple[int, int] | None:
        """The first of the ``ended`` tasks in which another column than its own improved, and this column.

        It improved by more than ``least``, by more than four times as much as the task's own, and to a better
        score. ``None`` if there is no such task.
        """
        task, column, gain, reached = self._gains()
        here = task < ended
        task, column, gain, reached = task[here], column[here], gain[here], reached[here]
        own_column = self._learns[1:]
        own_column = torch.cat([own_column, torch.full((max(ended - len(own_column), 0),), -1)])
        lowest = torch.full((len(own_column),), -math.inf, dtype=torch.float64)
        most = lowest.scatter_reduce(0, task, gain, "amax")
        is_most = gain == most[task]
        other = torch.full_like(own_column, self._columns)
        other = other.scatter_reduce(0, task[is_most], column[is_most], "amin")
        is_own, is_other = column == own_column[task], column == other[task]
        own = torch.where(own_column < 0, 0.0, lowest).index_put((task[is_own],), gain[is_own])
        own_score = lowest.index_put((task[is_own],), reached[is_own])
        other_score = lowest.index_put((task[is_other],), reached[is_other])
        below = (own_column < 0) | (own_score < other_score)
        found = (below & own.isfinite() & (most > (4 * own).clamp(min=least))).nonzero().flatten()
        return (int(found[0]), int(other[found[0]])) if len(found) else None

    def _gains(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each improvement from one row to the next: the earlier row, column, gain, and the later score."""
        place, sorting = (self._row * self._columns + self._column).sort()
        score = self._sign * self._score[sorting]
        later = torch.searchsorted(place, place + self._columns).clamp(max=max(len(place) - 1, 0))
        both = place[later] == place + self._columns
        gain = (score[later] - score).nan_to_num(-math.inf, math.inf, -math.inf)
        return (place // self._columns)[both], (place % self._columns)[both], gain[both], score[later][both]

    def _at(self, rows: Tensor) -> Tensor:
        """The score of each column in a row of its own; NaN if it is not known."""
        here = self._row == rows[self._column]
        return torch.full((self._columns,), math.nan, dtype=torch.float64).index_put(
            (self._column[here],), self._score[here]
        )
