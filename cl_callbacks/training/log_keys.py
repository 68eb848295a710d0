"""All keys under which this package logs.

``cl/…`` by optimizer step, ``cl_task/…`` by task (its x axis is :data:`TASK_INDEX`), ``cl_synapses/…`` per
rule and layer.
"""

from __future__ import annotations

TASK = "cl/task"
"""The number of the current task."""
BOUNDARY = "cl/boundary"
"""The number of the task whose end was detected here."""
BOUNDARY_ONSET = "cl/boundary_onset"
"""The batch at which the change began."""
BOUNDARY_DELAY = "cl/boundary_delay"
"""The number of batches from the onset to the detection."""
DRIFT_SCORE = "cl/drift/score"
"""The evidence for a change of the data."""
DRIFT_FIGURE = "cl/drift"
"""A figure: the loss above, the drift score below."""
STRENGTH_FIGURE = "cl/strength"
"""A figure: the scores on an old and a new task over factors of the strength."""

TASK_AXIS = "cl_task/*"
"""Pattern of all keys logged by task, for W&B's definition of their x axis."""
TASK_INDEX = "cl_task/index"
"""The number of tasks that ended before."""


def penalty(rule: str) -> str:
    """Key of the penalty whose gradient a rule adds, by the rule's name."""
    return f"cl/penalty/{rule}"


def ratio(what: str, rule: str) -> str:
    """Key of a rule's effect, by name: ``pull_ratio`` to the gradient, or ``update_ratio`` to the update."""
    return f"cl/{what}/{rule}"


def renewed(rule: str) -> str:
    """Key of the number of units that a rule has replaced so far, by the rule's name."""
    return f"cl/renewed/{rule}"


def timescale(rule: str, beaker: int) -> str:
    """Key of the timescale in steps of a beaker, counted from 1."""
    return f"cl/timescale_steps/{rule}/beaker_{beaker}"


def task(name: str, evaluation: str = "") -> str:
    """Key of a metric by task: ``average``, ``forgetting``, ``score/0``, and others.

    Also of ``table``, the task matrix as a table, and of the figures ``matrix``, of the score on each task
    after each task, and ``curves``, of the score on each task over training. Of several
    :class:`~cl_callbacks.TaskEvaluation` in a Trainer all but one have a name.
    """
    return "/".join(filter(None, ("cl_task", evaluation, name)))


def synapses(rule: str, *what: str) -> str:
    """Key of a statistic of a rule's synapses: measure, then statistic or layer."""
    return "/".join(("cl_synapses", rule, *what))


def guard(what: str) -> str:
    """Key of what a retention guard has found and done at the end of a task.

    ``lost`` and ``lost_after``: the most that an old task has lost, before and after; ``validations``: their
    number; ``share``: that of the old weights; ``strength/RULE``: the strength of a rule from here on.
    """
    return f"cl/guard/{what}"
