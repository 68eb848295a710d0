"""Tasks of equally many epochs within one fit."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks.boundaries.task_boundaries import TaskBoundaries


class EpochBoundaries(TaskBoundaries):
    """A task is so many epochs; one ``fit`` runs the whole sequence and keeps the optimizer.

    The training data must follow the task: give the Trainer ``reload_dataloaders_every_n_epochs=1`` and a
    data module that hears of the tasks, such as :class:`~cl_callbacks.TaskSequence`, or a
    ``train_dataloader`` that reads ``trainer.current_epoch``.
    A task that the end of the fit cuts short stays open, and the next fit goes on with it.

    Args:
        every_n_epochs: how many epochs each task has.

    Raises:
        ValueError: less than one epoch.

    Example:
        >>> EpochBoundaries(every_n_epochs=10).task
        0
    """

    def __init__(self, every_n_epochs: int) -> None:
        super().__init__()
        if every_n_epochs < 1:
            raise ValueError(f"a task has at least one epoch; got every_n_epochs={every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self._epoch = -1  # the last that was begun

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a Trainer whose data would never follow the task, and ends a task that is over.

        A checkpoint that was written in an epoch's very last step is from before its end, which Lightning
        leaves out when it goes on from there. Here the data are still those of the task.
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
        if self.task_is_open and self._epoch < trainer.current_epoch and self._is_last(self._epoch):
            self.end(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins a task."""
        self._epoch = trainer.current_epoch
        if not self.task_is_open:
            self.begin(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begins a task in mid-epoch, where a checkpoint that knows of none goes on."""
        if not self.task_is_open:
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the task after its last epoch."""
        if self.task_is_open and self._is_last(trainer.current_epoch):
            self.end(trainer)

    def _is_last(self, epoch: int) -> bool:
        return (epoch + 1) % self.every_n_epochs == 0

    def state_dict(self) -> dict[str, Any]:
        """With the epoch, which tells whether the task's last one was over."""
        return super().state_dict() | {"epoch": self._epoch}

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Goes on in the task in which the checkpoint was written."""
        super().restore(state_dict)
        self._epoch = state_dict["epoch"]
