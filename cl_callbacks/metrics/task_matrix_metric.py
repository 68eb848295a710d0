"""A metric whose state is the task matrix, whatever is then read from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def mean_of_processes(matrices: Tensor) -> Tensor:
    """Mean over processes of what each of them measured.

    Summed in float64, so that equal float32 matrices come out equal to the last bit, however many they are.

    Example:
        >>> nan = float("nan")
        >>> mean_of_processes(torch.tensor([[1.0, 1.0, nan], [2.0, nan, nan]]))
        tensor([1.5000, 1.0000,    nan])
    """
    return matrices.double().nanmean(dim=0).to(matrices.dtype)


class TaskMatrixMetric(Metric):
    """Base of the metrics over a stream of tasks: it collects their scores, a subclass computes a quantity.

    The state ``matrix`` has the shape (T + 1, T), NaN where nothing was measured, and grows with the tasks
    that it is told of: :mod:`cl_callbacks.functional.task_matrix` says what stands where. It is part of the
    ``state_dict``. Every process has to record the same rows; where they measured different samples, the mean
    over processes counts. Calling a metric, ``metric(row, learned)``, returns the quantity of that row alone,
    as with every other torchmetrics metric; ``compute()`` is what knows the earlier rows.

    A :class:`~torchmetrics.MetricCollection` keeps a matrix for each metric, since it takes states with NaN
    for different ones; ``compute_groups=[[...]]`` with the names of the metrics makes them share one.

    Args:
        higher_is_better: whether a higher *score* is a better one; False for losses and perplexities. Whether
            a higher value of the metric is better is what its attribute of the same name says.
        kwargs: options of :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = True
    matrix: Tensor

    def __init__(self, higher_is_better: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.higher_scores_are_better = higher_is_better
        self.add_state("matrix", torch.empty(1, 0), dist_reduce_fx=mean_of_processes, persistent=True)

    def update(self, row: Tensor, learned: int) -> None:
        """Records the scores on all tasks after some of them have been learned, in place of earlier ones.

        Args:
            row: one score per task, in the order of learning; NaN for a task that was not measured. Tasks
                that are unknown as yet may be missing at its end.
            learned: after how many tasks; 0 before any training.
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
