"""Sequences of tasks as LightningDataModules, and the output layer for those with a head for each task.

Other networks, and rules, do not belong here.
"""

from cl_callbacks.data.digits import digits
from cl_callbacks.data.image_task_sequence import ImageTasks
from cl_callbacks.data.multi_head import MultiHead
from cl_callbacks.data.task_sequence import TaskSequence
from cl_callbacks.data.text_tasks import TextTasks
from cl_callbacks.data.vision_tasks import VisionTasks

__all__ = ["ImageTasks", "MultiHead", "TaskSequence", "TextTasks", "VisionTasks", "digits"]
