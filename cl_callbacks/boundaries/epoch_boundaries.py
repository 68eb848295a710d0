"""Task boundaries every n epochs within one fit."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks.boundaries.task_boundaries import TaskBoundaries
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE
from cl_callbacks.guards.once import first_time
from cl_callbacks.training.fit_end import renews_statistics
from cl_callbacks.training.progress import say


class EpochBoundaries(TaskBoundaries):
    """A task lasts a fixed number of epochs; one ``fit`` trains all tasks and keeps the optimizer state.

    The training data must follow the task: give the Trainer ``reload_dataloaders_every_n_epochs=1`` and a
    ``train_dataloader`` that reads ``trainer.current_epoch``, or a data module that counts its tasks in
    ``on_task_end``, such as :class:`~cl_callbacks.TaskSequence`. In ``on_task_start`` it is too late: by then
    the loader of the epoch is there.
    A task that the end of the fit interrupts stays open and continues in the next fit.

    Args:
        every_n_epochs: number of epochs of each task.

    Raises:
        ValueError: less than one epoch.

    Example:
        >>> EpochBoundaries(every_n_epochs=10).task
        0
    """

    @checked(every_n_epochs=AT_LEAST_ONE)
    def __init__(self, every_n_epochs: int) -> None:
        super().__init__()
        self.every_n_epochs = every_n_epochs
        self._epoch = -1  # the latest epoch that has begun

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a Trainer whose data would never follow the task, and ends a task whose last epoch is over.

        A checkpoint of the last step of an epoch is written before ``on_train_epoch_end``, and Lightning
        does not call that hook on resume. At this point the data are still those of the old task.
        """
        super().on_train_start(trainer, pl_module)
        reload = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        follows = hasattr(trainer.datamodule, "on_task_end")  # type: ignore[attr-defined]
        if follows and reload != 1:
            # Lightning counts n epochs from the last load, which a resumed fit makes in mid-task.
            raise MisconfigurationException(
                f"With reload_dataloaders_every_n_epochs={reload} the Trainer would go on with the old "
                f"task's data when a task begins: use Trainer(reload_dataloaders_every_n_epochs=1)."
            )
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data is not None and reload == 0 and first_time(self, "loaders"):
            say(
                trainer,
                f"the loader of {type(data).__name__} is made once for all tasks: where its data depend on "
                f"the task, use Trainer(reload_dataloaders_every_n_epochs=1)",
            )
        if self.task_is_open and self._epoch < trainer.current_epoch and self._is_last(self._epoch):
            self.end(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins a task if none is open."""
        if renews_statistics(trainer):
            return
        self._epoch = trainer.current_epoch
        if not self.task_is_open:
            self.begin(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Begins a task in mid-epoch, if training resumes there from a checkpoint without an open task."""
        if not self.task_is_open:
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the task after its last epoch."""
        if self.task_is_open and self._is_last(trainer.current_epoch) and not renews_statistics(trainer):
            self.end(trainer)

    @property
    def why_no_task_ended(self) -> str:
        """The number of epochs that were waited for."""
        return f"EpochBoundaries waits for {self.every_n_epochs} epochs"

    def _is_last(self, epoch: int) -> bool:
        return (epoch + 1) % self.every_n_epochs == 0

    def state_dict(self) -> dict[str, Any]:
        """Adds the epoch, which tells whether the task's last epoch was over."""
        return super().state_dict() | {"epoch": self._epoch}

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Restores the task and the epoch in which the checkpoint was written."""
        super().restore(state_dict)
        self._epoch = state_dict["epoch"]
