"""Sequences of tasks."""

from cl_callbacks.data.digits import digits
from cl_callbacks.data.task_sequence import TaskSequence

__all__ = ["TaskSequence", "digits"]
