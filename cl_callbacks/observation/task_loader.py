"""Finds out which validation loader has the data of the task that begins."""

from __future__ import annotations

from typing import NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks.boundaries.batch_boundaries import BatchBoundaries
from cl_callbacks.boundaries.task_boundaries import TaskBoundaries, boundaries_of


class TaskLoader(NamedTuple):
    """The number of a task's validation loader, ``None`` without one; and whether this is only assumed."""

    loader: int | None
    assumed: bool = False


def loader_of_task(
    trainer: Trainer, task: int, position: int, loaders: int, order: list[int | None] | None
) -> TaskLoader:
    """The validation loader of a task that begins.

    Args:
        trainer: whose boundary callback or data module may know.
        task: as the boundary callback counts it.
        position: the number of tasks that began before.
        loaders: the number of loaders; 0 if not known yet.
        order: the loader of each task, if given.

    Raises:
        MisconfigurationException: a task beyond the ``order``, or that contradicts it, or without a loader.
    """
    current = getattr(trainer.datamodule, "current_task", None)  # type: ignore[attr-defined]
    numbered = isinstance(current, int) and not isinstance(current, bool)
    if order is not None:
        if position >= len(order):
            raise MisconfigurationException(
                f"TaskEvaluation: a task begins after the {len(order)} of order={order}: add the number "
                f"of its validation loader, or None for a task without one."
            )
        if numbered and order[position] not in (None, current):
            raise MisconfigurationException(
                f"TaskEvaluation: by order={order} the next task has the validation loader "
                f"{order[position]}, and the data module trains on task {current}: leave out the order, or "
                f"set `current_task` of the data module."
            )
        return TaskLoader(order[position])
    if isinstance(boundaries_of(trainer), BatchBoundaries):
        if loaders > 1 and not 0 <= task < loaders:
            raise MisconfigurationException(
                f"TaskEvaluation: the batches carry the task number {task}, and there are {loaders} "
                f"validation loaders, counted from 0: number tasks by their loader, or say order=[…], the "
                f"loader of each task in the order of learning."
            )
        return TaskLoader(task, assumed=loaders == 1)
    if numbered:
        return TaskLoader(current)
    return TaskLoader(position, assumed=True)


def loaders_of_past_tasks(boundaries: TaskBoundaries, order: list[int | None] | None) -> list[int | None]:
    """The loaders of tasks that ended before anybody looked, in the order of learning."""
    if isinstance(boundaries, BatchBoundaries):
        return []
    return list(range(boundaries.task) if order is None else order[: boundaries.task])
