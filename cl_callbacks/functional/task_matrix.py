r"""Metrics of a sequence of tasks, from one matrix of scores.

The task matrix :math:`R` has the shape (T + 1, T). Row :math:`k` holds the scores on every task after
:math:`k` tasks have been learned, row 0 those from before any training: :math:`R_{k,j}` is the score on task
:math:`j`, counted from 0, which is the :math:`(j+1)`-th to be learned. So :math:`R_{j+1,j}` is the score just
after task :math:`j`, and :math:`R_{j,j}` just before it. The papers count tasks from 1 and omit row 0; their
:math:`R_{i,i}` and :math:`R_{i-1,i}` are these two.

For tasks that are learned in another order than that of the columns, or more than once, give their
``order``: the column of the task that was learned first, second and so on, ``None`` for one that has no
column. The matrix then has a row for each of them and one before, and any number of columns. Where a task was
learned twice, :math:`R_{j+1,j}` in a backward transfer is the score just after it was learned last,
:math:`R_{j,j}` in a forward transfer that before it was learned first, and a mean over tasks has it once.

NaN marks scores that were not measured, and is left out of means. In all equations :math:`T` is the number
of tasks learned so far: the index of the last row in which anything was measured. A metric for which no
score is left, such as the forgetting of a single task, is NaN and no error.

Each function takes :math:`R` as ``matrix``, and returns a scalar in the units of the scores unless it says
otherwise. ``higher_is_better=False`` is for losses and perplexities, whose best is the lowest: a forgetting
is positive where they rose, and a transfer where they fell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Order = Sequence["int | None"]
"""The column of the task that was learned first, second and so on; ``None`` for one without a column."""


def tasks_learned(matrix: Tensor, order: Order | None = None) -> int:
    """Number of tasks learned: the index of the last row of the matrix in which anything was measured.

    Raises:
        ValueError: a matrix of another shape, such as one without the row from before training, or an order
            of fewer tasks or other columns than it has.

    Example:
        >>> nan = float("nan")
        >>> tasks_learned(torch.tensor([[0.1, 0.1], [0.9, nan], [nan, nan]]))
        1
    """
    if matrix.ndim != 2 or (order is None and matrix.shape[0] != matrix.shape[1] + 1):
        raise ValueError(
            f"a task matrix has the shape (T + 1, T), not {tuple(matrix.shape)}: one row from before any "
            "training (NaN if it was not measured) and one after each of T tasks. If tasks were learned more "
            "than once, or not all have a column, give `order`: the column of each task that was learned"
        )
    measured = (~matrix.isnan()).any(dim=1).nonzero()
    learned = int(measured[-1]) if len(measured) else 0
    if order is not None:
        wrong = [task for task in order if task is not None and not 0 <= task < matrix.shape[1]]
        if wrong or len(order) < learned:
            raise ValueError(
                f"order must hold the column of each of the {learned} tasks learned, below "
                f"{matrix.shape[1]}, or None; got {list(order)}"
            )
    return learned


@dataclass(frozen=True)
class _Learned:
    """What was learned when, as rows and columns of the matrix."""

    rows: int
    """The number of tasks learned, T."""
    events: list[tuple[int, int]]
    """Row just after each task that has a column, and this column."""
    first: dict[int, int]
    """Row just after each column's task was learned first."""
    last: dict[int, int]
    """Row just after it was learned last."""

    @property
    def earlier(self) -> list[int]:
        """Columns of the tasks learned before the latest one, and not by it."""
        return [task for task, row in self.last.items() if row < self.rows]


def _learned(matrix: Tensor, order: Order | None) -> _Learned:
    rows = tasks_learned(matrix, order)
    known = range(rows) if order is None else order[:rows]
    events = [(row, task) for row, task in enumerate(known, 1) if task is not None]
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for row, task in events:
        first.setdefault(task, row)
        last[task] = row
    return _Learned(rows, events, first, last)


def _entries(matrix: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """The entries of a matrix at pairs of a row and a column."""
    at = torch.tensor([rows, columns], dtype=torch.long, device=matrix.device)
    return matrix[at[0], at[1]]


def average_accuracy(matrix: Tensor, order: Order | None = None) -> Tensor:
    r"""Mean current score on all tasks learned so far; NaN before the first.

    .. math:: \frac1T \sum_{j<T} R_{T,j}

    Source: Lopez-Paz & Ranzato 2017 (arXiv 1706.08840), ACC; Chaudhry et al. 2018 (arXiv 1801.10112).

    Example:
        >>> average_accuracy(torch.tensor([[0.1, 0.1], [0.9, 0.3], [0.5, 0.75]]))
        tensor(0.6250)
    """
    learned = _learned(matrix, order)
    return matrix[learned.rows, list(learned.first)].nanmean()


def last_tasks_accuracy(matrix: Tensor, last: int, order: Order | None = None) -> Tensor:
    r"""Mean current score on the ``last`` (at least 1) tasks learned; NaN before the first.

    .. math:: \frac1m \sum_{T-m \le j<T} R_{T,j}, \qquad m = \min(\text{last}, T)

    Raises:
        ValueError: ``last`` below 1.

    Example:
        >>> last_tasks_accuracy(torch.tensor([[0.1, 0.1], [0.9, 0.3], [0.5, 0.75]]), last=1)
        tensor(0.7500)
    """
    if last < 1:
        raise ValueError(f"last must be at least 1, not {last}")
    learned = _learned(matrix, order)
    latest = sorted(learned.last, key=learned.last.__getitem__)[-last:]
    return matrix[learned.rows, latest].nanmean()


def learning_accuracy(matrix: Tensor, order: Order | None = None) -> Tensor:
    r"""Mean score on each task just after it was learned, whether or not it was forgotten later.

    .. math:: \frac1T \sum_{j<T} R_{j+1,j}

    A task that was learned twice counts twice. NaN before the first task.
    Source: Riemer et al. 2019 (arXiv 1810.11910), LA.

    Example:
        >>> learning_accuracy(torch.tensor([[0.1, 0.1], [1.0, 0.3], [0.5, 0.75]]))
        tensor(0.8750)
    """
    events = _learned(matrix, order).events
    return _entries(matrix, [row for row, _ in events], [task for _, task in events]).nanmean()


def forgetting_per_task(matrix: Tensor, higher_is_better: bool = True, order: Order | None = None) -> Tensor:
    r"""Fall of each task's score below the best that it has had since the task was learned.

    .. math:: f_j = \max_{j < k < T} R_{k,j} - R_{T,j}, \qquad j < T - 1

    Chaudhry et al. take the maximum from the first task of the sequence on, :math:`0 < k < T`. A score from
    before a task was learned is no memory of it, and does not count here; this matters only for a task that
    was better before it was learned than ever after. Negative where the current score is the best.

    Returns:
        One value per task, of shape (T,); NaN for the task learned last, for those that are still to be
        learned, and where either score is missing.

    Source: Chaudhry et al. 2018 (arXiv 1801.10112), forgetting of a task.

    Example:
        >>> forgetting_per_task(torch.tensor([[0.1, 0.1], [0.9, 0.3], [0.5, 0.75]]))
        tensor([0.4000,    nan])
    """
    learned, scores = _learned(matrix, order), matrix if higher_is_better else -matrix
    since = torch.full((matrix.shape[1],), learned.rows, device=matrix.device)
    for task in learned.earlier:
        since[task] = learned.first[task]
    row = torch.arange(matrix.shape[0], device=matrix.device).unsqueeze(1)
    remembered = (since <= row) & (row < learned.rows) & ~scores.isnan()
    best = scores.masked_fill(~remembered, -torch.inf).amax(dim=0)
    return torch.where(remembered.any(dim=0), best - scores[learned.rows], torch.nan)


def forgetting(matrix: Tensor, higher_is_better: bool = True, order: Order | None = None) -> Tensor:
    r"""Mean of :func:`forgetting_per_task` over all tasks but the last.

    .. math:: \frac1{T-1} \sum_{j<T-1} f_j

    Positive where tasks became worse; NaN before the second task.
    Source: Chaudhry et al. 2018 (arXiv 1801.10112), average forgetting.

    Example:
        >>> forgetting(torch.tensor([[0.1, 0.1], [0.9, 0.3], [0.5, 0.75]]))
        tensor(0.4000)
    """
    return forgetting_per_task(matrix, higher_is_better, order).nanmean()


def backward_transfer(matrix: Tensor, higher_is_better: bool = True, order: Order | None = None) -> Tensor:
    r"""Mean change of a task's score by later tasks, from just after it was learned until now.

    .. math:: \frac1{T-1} \sum_{j<T-1} (R_{T,j} - R_{j+1,j})

    Positive where tasks became better; NaN before the second task.
    Source: Lopez-Paz & Ranzato 2017 (arXiv 1706.08840), BWT.

    Example:
        >>> backward_transfer(torch.tensor([[0.1, 0.1], [0.9, 0.3], [0.5, 0.75]]))
        tensor(-0.4000)
    """
    learned, scores = _learned(matrix, order), matrix if higher_is_better else -matrix
    tasks = learned.earlier
    after = _entries(scores, [learned.last[task] for task in tasks], tasks)
    return (scores[learned.rows, tasks] - after).nanmean()


def forward_transfer(matrix: Tensor, higher_is_better: bool = True, order: Order | None = None) -> Tensor:
    r"""Mean change of a task's score by earlier tasks, from before any training until just before it.

    .. math:: \frac1{T-1} \sum_{0<j<T} (R_{j,j} - R_{0,j})

    The baseline is the same network before any training, row 0. Positive where tasks became better; NaN
    before the second task, and where row 0 was not measured.
    Source: Lopez-Paz & Ranzato 2017 (arXiv 1706.08840), FWT.

    Example:
        >>> forward_transfer(torch.tensor([[0.1, 0.1], [0.9, 0.3], [0.5, 0.75]]))
        tensor(0.2000)
    """
    learned, scores = _learned(matrix, order), matrix if higher_is_better else -matrix
    tasks = [task for task, row in learned.first.items() if row > 1]
    before = _entries(scores, [learned.first[task] - 1 for task in tasks], tasks)
    return (before - scores[0, tasks]).nanmean()


def intransigence(
    matrix: Tensor, reference: Tensor, higher_is_better: bool = True, order: Order | None = None
) -> Tensor:
    r"""Mean lag of scores just after learning behind those of a reference network that need not remember.

    .. math:: \frac1T \sum_{j<T} (R^*_j - R_{j+1,j})

    Chaudhry et al. take for :math:`R^*_j` a network trained on the data of all tasks up to :math:`j`
    together; one trained on task :math:`j` alone is common too. They define each term; this is the mean.
    Positive where tasks were learned worse than by the ``reference`` :math:`R^*`, which holds one score per
    task, and may hold more; NaN before the first task.

    Raises:
        ValueError: fewer references than tasks learned.

    Source: Chaudhry et al. 2018 (arXiv 1801.10112), intransigence.

    Example:
        >>> R = torch.tensor([[0.1, 0.1], [1.0, 0.3], [0.5, 0.75]])
        >>> intransigence(R, torch.tensor([1.0, 1.0]))
        tensor(0.1250)
    """
    events = _learned(matrix, order).events
    tasks = [task for _, task in events]
    if reference.ndim != 1 or len(reference) <= max(tasks, default=-1):
        raise ValueError(
            f"the reference must hold one score per task: its shape is {tuple(reference.shape)}, "
            f"and {len(tasks)} tasks have been learned"
        )
    best, reached = reference.to(matrix)[tasks], _entries(matrix, [row for row, _ in events], tasks)
    return (best - reached if higher_is_better else reached - best).nanmean()
