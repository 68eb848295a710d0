"""PyTorch Lightning callbacks for continual learning."""

from cl_callbacks.boundaries import BatchBoundaries, EpochBoundaries, FitBoundaries, TaskBoundaries
from cl_callbacks.consolidation import EWC
from cl_callbacks.data import TaskSequence
from cl_callbacks.synaptic_callback import SynapticCallback

__version__ = "0.1.0"

__all__ = [
    "EWC",
    "BatchBoundaries",
    "EpochBoundaries",
    "FitBoundaries",
    "SynapticCallback",
    "TaskBoundaries",
    "TaskSequence",
]
