"""The number of epochs of each task, said once: what a Trainer was not told follows from it."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks.boundaries.drift_boundaries import DriftBoundaries
from cl_callbacks.boundaries.epoch_boundaries import EpochBoundaries
from cl_callbacks.boundaries.fit_boundaries import FitBoundaries, ensure_boundaries
from cl_callbacks.boundaries.task_boundaries import TaskBoundaries, boundaries_of
from cl_callbacks.training.progress import say

_FOLLOWED: WeakKeyDictionary[Trainer, int] = WeakKeyDictionary()
"""The limits of epochs that followed, which in a further fit were still not said."""


class TaskEpochs:
    """The epochs of a sequence of tasks in one Trainer.

    Args:
        trainer: that trains the sequence.
        tasks: number of tasks.
        epochs_per_task: number of epochs after which the data change by themselves; ``None`` if they wait
            for a boundary callback.
        transition: whether neighbouring tasks are mixed around a change.
    """

    def __init__(self, trainer: Trainer, tasks: int, epochs_per_task: int | None, transition: bool) -> None:
        self.trainer, self.tasks = trainer, tasks
        self.epochs_per_task, self.transition = epochs_per_task, transition
        self._followed: list[str] = []

    def follow_limit(self, current_task: int) -> None:
        """Limits the fit to the epochs of all tasks, if the Trainer was given no limit of epochs.

        To be called before the fit runs, which takes a limit that was not given for 1000.
        """
        epochs, trainer = self._epochs, self.trainer
        if epochs is None or trainer.max_epochs not in (None, -1, _FOLLOWED.get(trainer)):
            return
        # Tasks that change by themselves are counted by epochs; others may begin in any epoch.
        first = 0 if self.epochs_per_task else trainer.current_epoch // epochs - current_task
        limit = epochs * (first + max(self.tasks, current_task + 1))
        trainer.fit_loop.max_epochs = _FOLLOWED[trainer] = limit
        self._followed.append(f"max_epochs={limit}")

    def follow_tasks(self, name: str) -> None:
        """Adds the boundary callback, and has the Trainer ask for new loaders, if neither was said.

        Args:
            name: of the sequence, for the line in the log.

        Raises:
            MisconfigurationException: a Trainer under which tasks would never change, or whose limits or
                boundaries contradict the sequence.
        """
        trainer: Any = self.trainer
        if self.epochs_per_task is None or any(isinstance(c, TaskBoundaries) for c in trainer.callbacks):
            ensure_boundaries(trainer)
        else:
            ensure_boundaries(trainer, EpochBoundaries(self.epochs_per_task))
            self._followed.append(f"EpochBoundaries({self.epochs_per_task})")
        epochs = self._epochs
        if epochs is not None and trainer.reload_dataloaders_every_n_epochs == 0:
            trainer.reload_dataloaders_every_n_epochs = 1
            self._followed.append("reload_dataloaders_every_n_epochs=1")
        self._refuse()
        notes = self._followed
        if self.epochs_per_task and 0 <= trainer.max_epochs < self.epochs_per_task * self.tasks:
            last = max(0, trainer.max_epochs - 1) // self.epochs_per_task
            notes = [*notes, f"max_epochs={trainer.max_epochs} ends the training in task {last}"]
        if notes:
            say(trainer, f"{name}, {self.tasks} tasks of {epochs} epochs: {', '.join(notes)}")
            self._followed = []

    @property
    def _epochs(self) -> int | None:
        """Epochs of a task, as the sequence says or else the boundary callback; ``None`` if neither does."""
        if self.epochs_per_task is not None:
            return self.epochs_per_task
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        return next((c.every_n_epochs for c in callbacks if isinstance(c, EpochBoundaries)), None)

    def _refuse(self) -> None:
        trainer: Any = self.trainer
        if self.epochs_per_task is None:
            if any(isinstance(c, DriftBoundaries) for c in trainer.callbacks):
                raise MisconfigurationException(
                    "DriftBoundaries waits for the data to change, and this TaskSequence changes them when a "
                    "boundary is declared: give it epochs_per_task, so that tasks change by themselves."
                )
            return
        epochs, limit = self.epochs_per_task * self.tasks, trainer.max_epochs
        if trainer.current_epoch >= epochs and not trainer.ckpt_path and not trainer.fast_dev_run:
            raise MisconfigurationException(
                f"This Trainer has trained {trainer.current_epoch} epochs, by which a TaskSequence with "
                f"epochs_per_task counts its tasks: all {self.tasks} are over. Use a new Trainer."
            )
        if limit > epochs:
            raise MisconfigurationException(
                f"{self.tasks} tasks of {self.epochs_per_task} epochs end after {epochs} epochs: leave "
                f"max_epochs out, or use Trainer(max_epochs={epochs}), or fewer; got max_epochs={limit}."
            )
        within_a_task = trainer.current_epoch // self.epochs_per_task == (limit - 1) // self.epochs_per_task
        if not within_a_task:
            self._refuse_changes_without_a_boundary()
        if (self.transition or not within_a_task) and trainer.reload_dataloaders_every_n_epochs != 1:
            raise MisconfigurationException(
                "A TaskSequence with epochs_per_task shows the next task when its loader is asked for anew: "
                "leave reload_dataloaders_every_n_epochs out, or use "
                "Trainer(reload_dataloaders_every_n_epochs=1)."
            )

    def _refuse_changes_without_a_boundary(self) -> None:
        """Refuses boundaries that pass over a change of the data, if a rule waits for one."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        waiting = [type(c).__name__ for c in callbacks if getattr(c, "consolidates", False)]
        epochs, boundaries = self.epochs_per_task, boundaries_of(self.trainer)
        assert epochs is not None
        if not waiting:
            return
        if isinstance(boundaries, EpochBoundaries) and epochs % boundaries.every_n_epochs:
            declared = (
                f"EpochBoundaries(every_n_epochs={boundaries.every_n_epochs}) ends tasks at other times"
            )
        elif isinstance(boundaries, FitBoundaries) and boundaries.is_default:
            declared = "since an earlier fit of this Trainer each fit is one task"
        else:
            return
        raise MisconfigurationException(
            f"The data of this TaskSequence change every {epochs} epochs, and {declared}: "
            f"{' and '.join(waiting)} would consolidate tasks too late. Use EpochBoundaries({epochs}); or "
            f"FitBoundaries(), if the whole fit shall be one task."
        )
