r"""Metrics of a sequence of tasks, from one matrix of scores.

The task matrix :math:`R` has the shape (T + 1, T). Row :math:`k` holds the scores on every task after
:math:`k` tasks have been learned, row 0 those from before any training: :math:`R_{k,j}` is the score on task
:math:`j`, counted from 0, which is the :math:`(j+1)`-th to be learned. So :math:`R_{j+1,j}` is the score just
after task :math:`j`, and :math:`R_{j,j}` just before it. The papers count tasks from 1 and omit row 0; their
:math:`R_{i,i}` and :math:`R_{i-1,i}` are these two.

NaN marks scores that were not measured, and is left out of means. In all equations :math:`T` is the number
of tasks learned so far: the index of the last row in which anything was measured. A metric for which no
score is left, such as the forgetting of a single task, is NaN and no error.

Each function takes :math:`R` as ``matrix``, and returns a scalar in the units of the scores unless it says
otherwise. ``higher_is_better=False`` is for losses and perplexities, whose best is the lowest: a forgetting
is positive where they rose, and a transfer where they fell.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tasks_learned(matrix: Tensor) -> int:
    """Number of tasks learned: the index of the last row of the matrix in which anything was measured.

    Raises:
        ValueError: a matrix of another shape, such as one without the row from before training.

    Example:
        >>> nan = float("nan")
        >>> tasks_learned(torch.tensor([[0.1, 0.1], [0.9, nan], [nan, nan]]))
        1
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] + 1:
        raise ValueError(
            f"a task matrix has the shape (T + 1, T), not {tuple(matrix.shape)}: one row from before any "
            "training (NaN if it was not measured) and one after each of T tasks"
        )
    measured = (~matrix.isnan()).any(dim=1).nonzero()
    return int(measured[-1]) if len(measured) else 0


def average_accuracy(matrix: Tensor) -> Tensor:
    r"""Mean current score on all tasks learned so far; NaN before the first.

    .. math:: \frac1T \sum_{j<T} R_{T,j}

    Source: Lopez-Paz & Ranzato 2017 (arXiv 1706.08840), ACC; Chaudhry et al. 2018 (arXiv 1801.10112).

    Example:
        >>> average_accuracy(torch.tensor([[0.1, 0.1], [0.9, 0.3], [0.5, 0.75]]))
        tensor(0.6250)
    """
    learned = tasks_learned(matrix)
    return matrix[learned, :learned].nanmean()


def last_tasks_accuracy(matrix: Tensor, last: int) -> Tensor:
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
    learned = tasks_learned(matrix)
    return matrix[learned, max(learned - last, 0) : learned].nanmean()


def learning_accuracy(matrix: Tensor) -> Tensor:
    r"""Mean score on each task just after it was learned, whether or not it was forgotten later.

    .. math:: \frac1T \sum_{j<T} R_{j+1,j}

    NaN before the first task.
    Source: Riemer et al. 2019 (arXiv 1810.11910), LA.

    Example:
        >>> learning_accuracy(torch.tensor([[0.1, 0.1], [1.0, 0.3], [0.5, 0.75]]))
        tensor(0.8750)
    """
    learned = tasks_learned(matrix)
    return matrix.diagonal(-1)[:learned].nanmean()


def forgetting_per_task(matrix: Tensor, higher_is_better: bool = True) -> Tensor:
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
    learned = tasks_learned(matrix)
    scores = matrix if higher_is_better else -matrix
    row = torch.arange(matrix.shape[0], device=matrix.device).unsqueeze(1)
    task = torch.arange(matrix.shape[1], device=matrix.device)
    remembered = (task < row) & (row < learned) & ~scores.isnan()
    best = scores.masked_fill(~remembered, -torch.inf).amax(dim=0)
    return torch.where(remembered.any(dim=0), best - scores[learned], torch.nan)


def forgetting(matrix: Tensor, higher_is_better: bool = True) -> Tensor:
    r"""Mean of :func:`forgetting_per_task` over all tasks but the last.

    .. math:: \frac1{T-1} \sum_{j<T-1} f_j

    Positive where tasks became worse; NaN before the second task.
    Source: Chaudhry et al. 2018 (arXiv 1801.10112), average forgetting.

    Example:
        >>> forgetting(torch.tensor([[0.1, 0.1], [0.9, 0.3], [0.5, 0.75]]))
        tensor(0.4000)
    """
    return forgetting_per_task(matrix, higher_is_better).nanmean()


def backward_transfer(matrix: Tensor, higher_is_better: bool = True) -> Tensor:
    r"""Mean change of a task's score by later tasks, from just after it was learned until now.

    .. math:: \frac1{T-1} \sum_{j<T-1} (R_{T,j} - R_{j+1,j})

    Positive where tasks became better; NaN before the second task.
    Source: Lopez-Paz & Ranzato 2017 (arXiv 1706.08840), BWT.

    Example:
        >>> backward_transfer(torch.tensor([[0.1, 0.1], [0.9, 0.3], [0.5, 0.75]]))
        tensor(-0.4000)
    """
    learned = tasks_learned(matrix)
    scores = matrix if higher_is_better else -matrix
    return (scores[learned] - scores.diagonal(-1))[: max(learned - 1, 0)].nanmean()


def forward_transfer(matrix: Tensor, higher_is_better: bool = True) -> Tensor:
    r"""Mean change of a task's score by earlier tasks, from before any training until just before it.

    .. math:: \frac1{T-1} \sum_{0<j<T} (R_{j,j} - R_{0,j})

    The baseline is the same network before any training, row 0. Positive where tasks became better; NaN
    before the second task, and where row 0 was not measured.
    Source: Lopez-Paz & Ranzato 2017 (arXiv 1706.08840), FWT.

    Example:
        >>> forward_transfer(torch.tensor([[0.1, 0.1], [0.9, 0.3], [0.5, 0.75]]))
        tensor(0.2000)
    """
    learned = tasks_learned(matrix)
    scores = matrix if higher_is_better else -matrix
    return (scores.diagonal() - scores[0])[1:learned].nanmean()


def intransigence(matrix: Tensor, reference: Tensor, higher_is_better: bool = True) -> Tensor:
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
    learned = tasks_learned(matrix)
    if reference.ndim != 1 or len(reference) < learned:
        raise ValueError(
            f"the reference must hold one score per task: its shape is {tuple(reference.shape)}, "
            f"and {learned} tasks have been learned"
        )
    best, reached = reference[:learned].to(matrix), matrix.diagonal(-1)[:learned]
    return (best - reached if higher_is_better else reached - best).nanmean()
