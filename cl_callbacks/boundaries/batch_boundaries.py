"""Task boundaries from a task number in each batch."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cl_callbacks.boundaries.recent_batches import RecentBatches
from cl_callbacks.boundaries.task_boundaries import TaskBoundaries
from cl_callbacks.guards.arguments import integer
from cl_callbacks.training.fit_end import renews_statistics


class BatchBoundaries(TaskBoundaries):
    """A task lasts as long as the batches carry its number.

    A new number ends the current task before training on the batch that carries it, and the end of the fit
    ends the last task. Task events get that number as ``task``. Since the end of a task becomes known only
    with the next one's first batch, its most recent samples are kept for the rules that read data at its end.

    Args:
        key: where the batch holds its task number: a mapping's key or a tuple's position. The value is one
            integer, or one for each sample, all equal.
        recent_samples: how many recent samples of the task to keep, on the device they arrive on; use at
            least the ``samples`` of the rules.

    Raises:
        ValueError: no sample to keep; in training, a batch that mixes tasks.

    Example:
        >>> BatchBoundaries(key="domain").key
        'domain'
    """

    def __init__(self, key: str | int, recent_samples: int = 500) -> None:
        super().__init__()
        integer("recent_samples", recent_samples, least=1)
        self.key = key
        self.recent_samples, self.recent_batches = recent_samples, RecentBatches(recent_samples)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds out who reads the recent batches."""
        super().on_train_start(trainer, pl_module)
        self.recent_batches.keep_for(trainer, pl_module, self)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ends the current task and begins the next one if the batch carries a new number."""
        if renews_statistics(trainer):
            return
        task = self._task_of(batch)
        if trainer.world_size > 1:
            tasks = trainer.strategy.all_gather(torch.tensor([task], device=pl_module.device))
            _refuse_disagreement(tasks)
        if self.task_is_open and task != self.task:
            self.end(trainer)
        if not self.task_is_open:
            self.task = task
            self.recent_batches.clear()
            self.begin(trainer)
        self.recent_batches.append(batch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the last task."""
        if self.task_is_open:
            self.end(trainer)
        super().on_train_end(trainer, pl_module)

    def _task_of(self, batch: Any) -> int:
        try:
            value = batch[self.key]
        except (KeyError, IndexError, TypeError) as error:
            has = list(batch) if isinstance(batch, dict) else f"a {type(batch).__name__}"
            raise ValueError(f"the batch has no task number at key={self.key!r}; it has {has}") from error
        numbers = torch.as_tensor(value).unique().tolist()
        if len(numbers) != 1 or int(numbers[0]) != numbers[0]:
            raise ValueError(
                f"a batch must come from one task, and batch[{self.key!r}] holds {numbers}: sort or group "
                f"the training data by task, or use a batch sampler that never mixes tasks"
            )
        return int(numbers[0])

    def process_state(self) -> dict[str, Any]:
        """Recent batches, so that a resumed task ends exactly as without the interruption."""
        return {"recent_batches": self.recent_batches.state_dict()}

    def restore_process(self, state_dict: dict[str, Any]) -> None:
        """Restores this process's recent batches."""
        self.recent_batches.load_state_dict(state_dict["recent_batches"])


def _refuse_disagreement(tasks: Tensor) -> None:
    """Raises unless all processes are in the same task: otherwise the next collective would deadlock."""
    if len(tasks.unique()) > 1:
        raise ValueError(
            f"the processes are in different tasks at the same batch: {tasks.tolist()}. Let each process "
            f"see equally many batches of each task, for instance with a sampler that shards every task "
            f"by itself"
        )
