"""Task boundaries from a task number in each batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cl_callbacks.boundaries.recent_batches import RecentBatches
from cl_callbacks.boundaries.task_boundaries import TaskBoundaries
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE
from cl_callbacks.training.arriving_batches import ArrivingBatches
from cl_callbacks.training.fit_end import renews_statistics


class BatchBoundaries(TaskBoundaries):
    """A task lasts as long as the batches carry its number.

    A new number ends the current task before training on the batch that carries it, and the end of the fit
    ends the last task. Task events get that number as ``task``. Since the end of a task becomes known only
    with the next one's first batch, its most recent samples are kept for the rules that read data at its end.

    The number is read before the batch is moved to the device, so that training does not wait for the device.
    It waits once in each batch if batches are on the device already when they come from the loader, or if the
    module or the data module has a ``transfer_batch_to_device`` or ``on_after_batch_transfer`` of its own,
    which may change a batch: keep numbers on the CPU there, or give plain integers.

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

    @checked(recent_samples=AT_LEAST_ONE)
    def __init__(self, key: str | int, recent_samples: int = 500) -> None:
        super().__init__()
        self.key = key
        self.recent_samples, self.recent_batches = recent_samples, RecentBatches(recent_samples)
        self._arriving: ArrivingBatches | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds out who reads the recent batches, and begins to read the numbers of batches that arrive."""
        super().on_train_start(trainer, pl_module)
        self._arriving = ArrivingBatches(trainer, self._value_in)
        self.recent_batches.keep_for(trainer, pl_module, self)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ends the current task and begins the next one if the batch carries a new number."""
        if renews_statistics(trainer):
            return
        task = self._task_of(batch)
        is_new = not self.task_is_open or task != self.task
        if trainer.world_size > 1:
            tasks = _of_all_processes(trainer, task)
            if is_new:  # reading them waits for the device; processes that agreed before agree without it
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

    def _value_in(self, batch: Any) -> Any:
        """What the batch has at the key; ``None`` without."""
        try:
            return batch[self.key]
        except (KeyError, IndexError, TypeError):
            return None

    def _task_of(self, batch: Any) -> int:
        value = self._value_in(batch) if self._arriving is None else self._arriving.read(batch)
        if value is None:
            has = list(batch) if isinstance(batch, dict) else f"a {type(batch).__name__}"
            raise ValueError(f"the batch has no task number at key={self.key!r}; it has {has}")
        numbers = torch.as_tensor(value)
        # Both in one read, which is all that waits if they are on the device.
        least, greatest = torch.stack(numbers.aminmax()).tolist() if numbers.numel() else (0, 1)
        if least != greatest or int(least) != least:
            found = numbers.unique().tolist()
            raise ValueError(
                f"a batch must come from one task, and batch[{self.key!r}] holds {found}: sort or group "
                f"the training data by task, or use a batch sampler that never mixes tasks"
            )
        return int(least)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads no more of batches that arrive."""
        self._detach()
        super().teardown(trainer, pl_module, stage)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Reads no more of batches that arrive, also after an exception."""
        self._detach()
        super().on_exception(trainer, pl_module, exception)

    def _detach(self) -> None:
        if self._arriving is not None:
            self._arriving.detach()
            self._arriving = None

    def process_state(self) -> dict[str, Any]:
        """Recent batches, so that a resumed task ends exactly as without the interruption."""
        return {"recent_batches": self.recent_batches.state_dict()}

    def restore_process(self, state_dict: dict[str, Any]) -> None:
        """Restores this process's recent batches."""
        self.recent_batches.load_state_dict(state_dict["recent_batches"])


def _of_all_processes(trainer: Trainer, task: int) -> Tensor:
    """The tasks of all processes, on the device, without waiting for it; all processes must call this."""
    mine = torch.full((1,), task, device=trainer.strategy.root_device)
    tasks = [torch.empty_like(mine) for _ in range(trainer.world_size)]
    dist.all_gather(tasks, mine)
    return torch.cat(tasks)


def _refuse_disagreement(tasks: Tensor) -> None:
    """Raises unless all processes are in the same task: otherwise the next collective would deadlock."""
    if len(tasks.unique()) > 1:
        raise ValueError(
            f"the processes are in different tasks at the same batch: {tasks.tolist()}. Let each process "
            f"see equally many batches of each task, for instance with a sampler that shards every task "
            f"by itself"
        )
