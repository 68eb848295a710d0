"""Mean scores of a network on the tasks it has learned."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cl_callbacks.functional.task_matrix import average_accuracy, last_tasks_accuracy, learning_accuracy
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE
from cl_callbacks.metrics.task_matrix_metric import TaskMatrixMetric


class _MeanScore(TaskMatrixMetric):
    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """Whether a higher mean is better, which is so if higher scores are."""
        return self.higher_scores_are_better


class AverageAccuracy(_MeanScore):
    r"""Mean score on the tasks learned so far, :math:`\frac1T \sum_{j<T} R_{T,j}`; NaN before the first.

    See :func:`~cl_callbacks.functional.average_accuracy` and, for the arguments, :class:`TaskMatrixMetric`.

    Example:
        >>> from torch import tensor
        >>> metric = AverageAccuracy()
        >>> metric.update(tensor([0.9, 0.3]), learned=1)
        >>> metric.update(tensor([0.5, 0.75]), learned=2)
        >>> metric.compute()
        tensor(0.6250)
    """

    def compute(self) -> Tensor:
        """Mean of the last row over the tasks learned, a scalar."""
        return average_accuracy(self.matrix, self.order)


class LearningAccuracy(_MeanScore):
    r"""Mean score on each task just after it was learned, :math:`\frac1T \sum_{j<T} R_{j+1,j}`.

    See :func:`~cl_callbacks.functional.learning_accuracy` and, for the arguments, :class:`TaskMatrixMetric`.

    Example:
        >>> from torch import tensor
        >>> metric = LearningAccuracy()
        >>> metric.update(tensor([1.0, 0.3]), learned=1)
        >>> metric.update(tensor([0.5, 0.75]), learned=2)
        >>> metric.compute()
        tensor(0.8750)
    """

    def compute(self) -> Tensor:
        """Mean of the scores on tasks just learned, a scalar."""
        return learning_accuracy(self.matrix, self.order)


class LastTasksAccuracy(_MeanScore):
    """Mean score on the ``last`` tasks learned: for a long stream, of which only a part can be kept.

    See :func:`~cl_callbacks.functional.last_tasks_accuracy` and, for the other arguments,
    :class:`TaskMatrixMetric`.

    Example:
        >>> from torch import tensor
        >>> metric = LastTasksAccuracy(last=1)
        >>> metric.update(tensor([0.5, 0.75]), learned=2)
        >>> metric.compute()
        tensor(0.7500)
    """

    @checked(last=AT_LEAST_ONE)
    def __init__(self, last: int = 5, higher_is_better: bool = True, **kwargs: Any) -> None:
        super().__init__(higher_is_better, **kwargs)
        self.last = last

    def compute(self) -> Tensor:
        """Mean of the last row over the latest tasks learned, a scalar."""
        return last_tasks_accuracy(self.matrix, self.last, self.order)
