"""Tasks of equally many epochs within one fit."""

from __future__ import annotations

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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a Trainer whose data would never follow the task."""
        reload = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        follows = hasattr(trainer.datamodule, "on_task_end")  # type: ignore[attr-defined]
        if follows and reload != 1:
            # Lightning counts n epochs from the last load, which a resumed fit makes in mid-task.
            raise MisconfigurationException(
                f"With reload_dataloaders_every_n_epochs={reload} the Trainer would go on with the old "
                f"task's data when a task begins: use Trainer(reload_dataloaders_every_n_epochs=1)."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins a task."""
        if not self.task_is_open:
            self.begin(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the task after its last epoch."""
        if self.task_is_open and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self.end(trainer)
