"""The callbacks that declare where a task ends. What rules do there belongs in ``rules/``."""

from cl_callbacks.boundaries.batch_boundaries import BatchBoundaries
from cl_callbacks.boundaries.drift_boundaries import DriftBoundaries
from cl_callbacks.boundaries.epoch_boundaries import EpochBoundaries
from cl_callbacks.boundaries.fit_boundaries import FitBoundaries
from cl_callbacks.boundaries.plateau_boundaries import PlateauBoundaries
from cl_callbacks.boundaries.task_boundaries import TaskBoundaries

__all__ = [
    "BatchBoundaries", "DriftBoundaries", "EpochBoundaries", "FitBoundaries", "PlateauBoundaries",
    "TaskBoundaries",
]  # fmt: skip
