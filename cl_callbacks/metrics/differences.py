"""Differences of scores: the effect of learning one task on the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cl_callbacks.functional.task_matrix import backward_transfer, forgetting, forward_transfer, intransigence
from cl_callbacks.guards.arguments import checked
from cl_callbacks.metrics.task_matrix_metric import TaskMatrixMetric


class Forgetting(TaskMatrixMetric):
    """Mean fall of a task's score below its best since it was learned; NaN before the second task.

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
        """Mean over all tasks but the last, a scalar."""
        return forgetting(self.matrix, self.higher_scores_are_better, self.order)


class BackwardTransfer(TaskMatrixMetric):
    """Mean change of a task's score by learning later ones, positive for the better; NaN before the second.

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
        """Mean over all tasks but the last, a scalar."""
        return backward_transfer(self.matrix, self.higher_scores_are_better, self.order)


class ForwardTransfer(TaskMatrixMetric):
    """Mean gain of a task's score, before it is learned, over that of the network before any training.

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
        """Mean over all tasks but the first, a scalar."""
        return forward_transfer(self.matrix, self.higher_scores_are_better, self.order)


class Intransigence(TaskMatrixMetric):
    """Mean gap of a task's score, when just learned, to a network that does not have to remember.

    The ``reference`` is the score ``(T,)`` of that network on each task; for the other arguments see
    :class:`TaskMatrixMetric`, for the equation :func:`~cl_callbacks.functional.intransigence`.

    Example:
        >>> from torch import tensor
        >>> metric = Intransigence(reference=[1.0, 1.0])
        >>> metric.update(tensor([0.75, 0.3]), learned=1)
        >>> metric.compute()
        tensor(0.2500)
    """

    higher_is_better = False

    @checked()
    def __init__(
        self, reference: Tensor | Sequence[float], higher_is_better: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(higher_is_better, **kwargs)
        self.reference = torch.as_tensor(reference)
        if self.reference.ndim != 1 or not len(self.reference) or not self.reference.isfinite().all():
            raise ValueError(f"reference must have one finite score for each task; got {reference}")

    def compute(self) -> Tensor:
        """Mean over the tasks learned so far, a scalar."""
        return intransigence(self.matrix, self.reference, self.higher_scores_are_better, self.order)
