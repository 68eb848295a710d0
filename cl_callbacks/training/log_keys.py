"""Every key under which this package logs.

``cl/…`` by optimizer step, ``cl_task/…`` by task (its x axis is :data:`TASK_INDEX`), ``cl_synapses/…`` per
rule and layer.
"""

from __future__ import annotations

TASK = "cl/task"
"""The number of the current task."""
BOUNDARY = "cl/boundary"
"""The task that has ended here, of boundaries that are found."""
BOUNDARY_ONSET = "cl/boundary_onset"
"""The batch at which the change began."""
BOUNDARY_DELAY = "cl/boundary_delay"
"""How many batches later it was found."""
DRIFT_SCORE = "cl/drift/score"
"""The evidence for a change of the data."""
DRIFT_FIGURE = "cl/drift"
"""A picture: the loss above, the drift score below."""

TASK_AXIS = "cl_task/*"
"""All that is logged by task, for W&B's definition of its x axis."""
TASK_INDEX = "cl_task/index"
"""How many tasks ended before."""
TASK_TABLE = "cl_task/table"
"""The task matrix as a table."""
TASK_MATRIX = "cl_task/matrix"
"""A picture: the score on each task after each task."""
TASK_CURVES = "cl_task/curves"
"""A picture: the score on each task over training."""


def penalty(rule: str) -> str:
    """The penalty whose gradient a rule adds, by the rule's name."""
    return f"cl/penalty/{rule}"


def timescale(rule: str, beaker: int) -> str:
    """Steps within which a beaker follows, counted from 1."""
    return f"cl/timescale_steps/{rule}/beaker_{beaker}"


def task(name: str) -> str:
    """A number for each task: ``average``, ``forgetting``, ``score/0``, ``seconds`` and others."""
    return f"cl_task/{name}"


def synapses(rule: str, *what: str) -> str:
    """Of a rule's synapses: measure, then statistic or layer."""
    return "/".join(("cl_synapses", rule, *what))
