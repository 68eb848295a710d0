"""Base of the metrics whose state is the task matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from cl_callbacks.functional.task_matrix import Order
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import NON_NEGATIVE


def mean_of_processes(matrices: Tensor) -> Tensor:
    """Mean over processes ``(P, T + 1, T)``, leaving out NaN where a process measured nothing.

    Summed in float64, so that the mean of any number of equal float32 matrices is bit-identical to them.

    Example:
        >>> nan = float("nan")
        >>> mean_of_processes(torch.tensor([[1.0, 1.0, nan], [2.0, nan, nan]]))
        tensor([1.5000, 1.0000,    nan])
    """
    return matrices.double().nanmean(dim=0).to(matrices.dtype)


class TaskMatrixMetric(Metric):
    """Base of the metrics over a stream of tasks: collects the task matrix, from which a subclass computes.

    The state ``matrix`` has the shape (T + 1, T), NaN where nothing was measured, and grows with the tasks
    recorded; :mod:`cl_callbacks.functional.task_matrix` explains its entries. It is part of the
    ``state_dict``. Every process has to record the same rows; where they measured different samples, the mean
    over processes is used. Calling a metric, ``metric(row, learned)``, returns the value for that row alone,
    as with every other torchmetrics metric; ``compute()`` uses the earlier rows too.

    A :class:`~torchmetrics.MetricCollection` keeps a matrix for each metric, since it finds states with NaN
    unequal; ``compute_groups=[[...]]`` with the names of the metrics makes them share one.

    Args:
        higher_is_better: whether a higher *score* is a better one; False for losses and perplexities. The
            attribute of the same name tells whether a higher value of the metric is better.
        order: index in a row of the task that is learned first, second and so on, if they are not 0, 1, 2 …:
            for tasks that are learned in another order or more than once; ``None`` for one without a score.
        kwargs: options of :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = True
    matrix: Tensor

    @checked(order=NON_NEGATIVE)
    def __init__(self, higher_is_better: bool = True, *, order: Order | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.higher_scores_are_better, self.order = higher_is_better, order
        self.add_state("matrix", torch.empty(1, 0), dist_reduce_fx=mean_of_processes, persistent=True)

    def update(self, row: Tensor, learned: int) -> None:
        """Records the scores on all tasks after ``learned`` of them, replacing that row if it exists.

        Args:
            row: one score per task ``(T,)``, in the order of learning unless there is an ``order``; NaN for a
                task that was not measured. Tasks still unknown may be missing at its end.
            learned: number of tasks learned before the scores were measured; 0 before any training.
        """
        if row.ndim != 1:
            raise ValueError(f"a row holds one score per task, its shape here is {tuple(row.shape)}")
        if learned < 0:
            raise ValueError(f"the number of tasks learned cannot be negative: {learned}")
        rows, known = self.matrix.shape
        tasks = max(known, len(row), learned)
        matrix = torch.full((tasks + 1, tasks), torch.nan, dtype=self.matrix.dtype, device=self.device)
        matrix[:rows, :known] = self.matrix
        matrix[learned] = torch.nan
        matrix[learned, : len(row)] = row.detach()
        self.matrix = matrix
