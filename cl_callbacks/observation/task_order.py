"""Which validation loader has the data of which task, and the words for where that is not known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks.boundaries.batch_boundaries import BatchBoundaries
from cl_callbacks.boundaries.task_boundaries import TaskBoundaries, boundaries_of
from cl_callbacks.observation.task_record import TaskRecord


class TaskLoader(NamedTuple):
    """The number of a task's validation loader, ``None`` without one; and whether this is only assumed."""

    loader: int | None
    assumed: bool = False


def loader_of_task(
    trainer: Trainer,
    task: int,
    position: int,
    loaders: int,
    order: list[int | None] | None,
    asker: str = "TaskEvaluation",
) -> TaskLoader:
    """The validation loader of a task that begins.

    Args:
        trainer: whose boundary callback or data module may know.
        task: as the boundary callback counts it.
        position: the number of tasks that began before.
        loaders: the number of loaders; 0 if not known yet.
        order: the loader of each task, if given.
        asker: who wants to know, for the error message.

    Raises:
        MisconfigurationException: a task beyond the ``order``, or that contradicts it, or without a loader.
    """
    current = getattr(trainer.datamodule, "current_task", None)  # type: ignore[attr-defined]
    numbered = isinstance(current, int) and not isinstance(current, bool)
    if order is not None:
        if position >= len(order):
            raise MisconfigurationException(
                f"{asker}: a task begins after the {len(order)} of order={order}: add the number "
                f"of its validation loader, or None for a task without one."
            )
        if numbered and order[position] not in (None, current):
            raise MisconfigurationException(
                f"{asker}: by order={order} the next task has the validation loader "
                f"{order[position]}, and the data module trains on task {current}: leave out the order, or "
                f"set `current_task` of the data module."
            )
        return TaskLoader(order[position])
    if isinstance(boundaries_of(trainer), BatchBoundaries):
        if loaders > 1 and not 0 <= task < loaders:
            raise MisconfigurationException(
                f"{asker}: the batches carry the task number {task}, and there are {loaders} "
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


def checked_order(order: Sequence[int | None], record: TaskRecord) -> list[int | None]:
    """An order as a list.

    Raises:
        ValueError: it does not hold numbers of loaders, or not for all tasks that have begun.
    """
    for task in order:
        if task is not None and (not isinstance(task, int) or isinstance(task, bool) or task < 0):
            raise ValueError(f"order must hold the numbers of loaders, from 0, or None; got {order!r}")
    loaders, begun = record.loaders, len(record.begun)
    beyond = [task for task in order if loaders and task is not None and task >= loaders]
    if beyond or len(order) < begun:
        raise ValueError(
            f"order={list(order)} does not fit: there are {loaders} validation loaders, counted from 0, and "
            f"{begun} tasks have begun"
        )
    return list(order)


def wrong_order(record: TaskRecord, monitor: str) -> str | None:
    """The sentence about tasks that come in another order than that of the loaders, if they seem to."""
    found = record.mismatch()
    if found is None:
        return None
    return (
        f"TaskEvaluation({monitor!r}) took the tasks in the order of the validation loaders, and they seem "
        f"to come in another: {found}. So that none is wrong, no figures are given: say order=[…], the "
        f"loader of each task in the order of learning, or set the attribute `order` afterwards; "
        f"order={list(range(record.loaders))} if it is that of the loaders after all."
    )


def unknown_order(record: TaskRecord) -> str | None:
    """The sentence about more tasks than loaders, of which nobody says what they are."""
    if not record.is_beyond_loaders:
        return None
    return (
        f"TaskEvaluation: more tasks have ended than there are validation loaders, {record.loaders}, and "
        f"nobody says which were learned again: forgetting, backward transfer and learning are not given. "
        f"Say order=[…], the loader of each task, None for one without."
    )
