"""Differences of scores: what learning one task does to the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cl_callbacks.functional.task_matrix import (
    backward_transfer,
    forgetting,
    forward_transfer,
    intransigence,
)
from cl_callbacks.metrics.task_matrix_metric import TaskMatrixMetric


class Forgetting(TaskMatrixMetric):
    """How far tasks have fallen below the best score they had since they were learned; NaN before the second.

    See :func:`~cl_callbacks.functional.forgetting` and, for the arguments, :class:`TaskMatrixMetric`.

    Example:
        >>> from torch import tensor
        >>> metric = Forgetting()
        >>> metric.update(tensor([0.9, 0.3]), learned=1)
        >>> metric.update(tensor([0.5, 0.75]), learned=2)
        >>> metric.compute()
        tensor(0.4000)
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """The mean over all tasks but the last."""
        return forgetting(self.matrix, self.higher_scores_are_better)


class BackwardTransfer(TaskMatrixMetric):
    """What learning later tasks did to those before, positive if they became better; NaN before the second.

    See :func:`~cl_callbacks.functional.backward_transfer` and, for the arguments, :class:`TaskMatrixMetric`.

    Example:
        >>> from torch import tensor
        >>> metric = BackwardTransfer()
        >>> metric.update(tensor([0.9, 0.3]), learned=1)
        >>> metric.update(tensor([0.5, 0.75]), learned=2)
        >>> metric.compute()
        tensor(-0.4000)
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """The mean over all tasks but the last."""
        return backward_transfer(self.matrix, self.higher_scores_are_better)


class ForwardTransfer(TaskMatrixMetric):
    """What learning earlier tasks did to those still to come, compared with the network before any training.

    NaN unless the row after 0 tasks was recorded, and before the second task.
    See :func:`~cl_callbacks.functional.forward_transfer` and, for the arguments, :class:`TaskMatrixMetric`.

    Example:
        >>> from torch import tensor
        >>> metric = ForwardTransfer()
        >>> metric.update(tensor([0.1, 0.1]), learned=0)
        >>> metric.update(tensor([0.9, 0.3]), learned=1)
        >>> metric.update(tensor([0.5, 0.75]), learned=2)
        >>> metric.compute()
        tensor(0.2000)
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """The mean over all tasks but the first."""
        return forward_transfer(self.matrix, self.higher_scores_are_better)


class Intransigence(TaskMatrixMetric):
    """How far tasks, when just learned, stay behind a network that does not have to remember.

    See :func:`~cl_callbacks.functional.intransigence`.

    Args:
        reference: the score of that network on each task.
        higher_is_better: whether a higher score is a better one.
        kwargs: options of :class:`torchmetrics.Metric`.

    Example:
        >>> from torch import tensor
        >>> metric = Intransigence(reference=[1.0, 1.0])
        >>> metric.update(tensor([0.75, 0.3]), learned=1)
        >>> metric.compute()
        tensor(0.2500)
    """

    higher_is_better = False

    def __init__(
        self, reference: Sequence[float] | Tensor, higher_is_better: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(higher_is_better, **kwargs)
        self.reference = torch.as_tensor(reference)

    def compute(self) -> Tensor:
        """The mean over the tasks learned so far."""
        return intransigence(self.matrix, self.reference, self.higher_scores_are_better)
