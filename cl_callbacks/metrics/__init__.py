"""Metrics over a stream of tasks, as torchmetrics. Their equations are in ``functional/``."""

from cl_callbacks.metrics.accuracies import AverageAccuracy, LastTasksAccuracy, LearningAccuracy
from cl_callbacks.metrics.differences import BackwardTransfer, Forgetting, ForwardTransfer, Intransigence
from cl_callbacks.metrics.task_matrix_metric import TaskMatrixMetric

__all__ = [
    "AverageAccuracy", "BackwardTransfer", "Forgetting", "ForwardTransfer", "Intransigence",
    "LastTasksAccuracy", "LearningAccuracy", "TaskMatrixMetric",
]  # fmt: skip
