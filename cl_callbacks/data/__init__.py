"""Sequences of tasks."""

from cl_callbacks.data.digits import digits
from cl_callbacks.data.image_task_sequence import ImageTasks
from cl_callbacks.data.task_sequence import TaskSequence
from cl_callbacks.data.text_tasks import TextTasks

__all__ = ["ImageTasks", "TaskSequence", "TextTasks", "digits"]
