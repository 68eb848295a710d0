"""The boundary callback of a trial, which knows how long a task is."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks.boundaries.epoch_boundaries import EpochBoundaries
from cl_callbacks.boundaries.fit_boundaries import FitBoundaries
from cl_callbacks.boundaries.task_boundaries import TaskBoundaries, boundaries_of, dispatch

_NOW = nullcontext()


class TaskLength(NamedTuple):
    """Epochs and optimizer steps of a task, infinite where there is no such limit: it ends at the first."""

    epochs: float
    steps: float = math.inf


def task_length(trainer: Trainer, epochs_per_task: int | None, asker: str) -> TaskLength:
    """How long a task is in a Trainer: as given, or as its data or its boundary callback say.

    Raises:
        MisconfigurationException: nobody knows.
    """
    data, limit = trainer.datamodule, trainer.max_epochs  # type: ignore[attr-defined]
    boundaries = boundaries_of(trainer)
    epochs = epochs_per_task or getattr(data, "epochs_per_task", None)
    if epochs is None and isinstance(boundaries, EpochBoundaries):
        epochs = boundaries.every_n_epochs
    if epochs is not None:
        return TaskLength(epochs)
    if isinstance(boundaries, FitBoundaries):
        left = math.inf if limit is None or limit < 0 else limit - trainer.current_epoch
        steps = math.inf if trainer.max_steps < 0 else trainer.max_steps - trainer.global_step
        if min(left, steps) < math.inf:
            return TaskLength(left, steps)
    raise MisconfigurationException(
        f"{asker} does not know how long it shall learn a task, since neither the data nor the Trainer say "
        f"so beforehand: give it epochs_per_task."
    )


class TrialBoundaries(TaskBoundaries):
    """Ends a task, and stops the Trainer, after a share of its length; prints and writes nothing.

    Args:
        length: of a task.
    """

    def __init__(self, length: TaskLength) -> None:
        super().__init__()
        self.length, self.share = length, 1.0
        self._since = 0, 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Does nothing: the configuration is logged by the Trainer's own boundary callback."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers where the task begins."""
        self._since = trainer.current_epoch, trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins the task, after every ``on_train_start``."""
        if not self.task_is_open:
            self.begin(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Stops in the middle of an epoch where the share ends there."""
        self._stop_if_over(trainer, (trainer.fit_loop.batch_idx + 1) / trainer.num_training_batches)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the task, if its share is over."""
        self._stop_if_over(trainer, 1.0)
        if trainer.should_stop:
            self.end(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a task that a limit of the Trainer has stopped."""
        if self.task_is_open:
            self.end(trainer)

    def end(self, trainer: Trainer, as_of: AbstractContextManager[None] = _NOW) -> None:
        """Ends the task: sends ``on_task_ending`` and ``on_task_end``, and no more."""
        dispatch(trainer, "on_task_ending", self.task)
        dispatch(trainer, "on_task_end", self.task)
        self.task, self.task_is_open = self.task + 1, False

    def _stop_if_over(self, trainer: Trainer, of_epoch: float) -> None:
        epochs = trainer.current_epoch - self._since[0] + of_epoch
        steps = trainer.global_step - self._since[1]
        done = max(epochs / self.length.epochs, steps / self.length.steps)
        if done > self.share - 1e-9:  # thirds of an epoch do not add up to one
            trainer.should_stop = True
