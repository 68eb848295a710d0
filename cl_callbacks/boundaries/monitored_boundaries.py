"""Shared base of the boundaries that are found by monitoring a value of each training batch."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cl_callbacks.boundaries.signals import Signal
from cl_callbacks.boundaries.task_boundaries import TaskBoundaries
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE
from cl_callbacks.training.fit_end import renews_statistics
from cl_callbacks.training.progress import show_in_progress_bar


class MonitoredBoundaries(TaskBoundaries):
    """Base of the boundaries that are found by monitoring a value of each training batch.

    Values stay on the device until ``check_every_n_batches`` of them are read at once; they are averaged over
    processes before :meth:`see` gets them, so that all processes decide alike. Values that are not finite
    are skipped.

    Args:
        signal: the value to monitor.
        check_every_n_batches: number of values that are read at a time.

    Attributes:
        skipped: number of values that were not finite.
    """

    @checked(check_every_n_batches=AT_LEAST_ONE)
    def __init__(self, signal: Signal, check_every_n_batches: int) -> None:
        super().__init__()
        self.signal = signal
        self.check_every_n_batches = check_every_n_batches
        self.skipped = 0
        self._batches = 0  # trained on so far, over the whole training
        self._unread: list[tuple[int, Tensor]] = []  # batch index and value, on the device
        self._unseen: deque[tuple[int, float]] = deque()

    def see(self, trainer: Trainer, batch: int, value: float) -> None:
        """Processes the next finite value, averaged over processes, and ends the task if it shows its end.

        The batch that it belongs to is counted over the whole training.
        """
        raise NotImplementedError

    @property
    def reads_now(self) -> bool:
        """Whether the next value is the one with which all that are unread are read."""
        return len(self._unread) + 1 >= self.check_every_n_batches

    @property
    def why_no_task_ended(self) -> None:
        """``None``: a fit in which nothing was found is usual, and the next one goes on."""
        return None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attaches the signal to the module."""
        super().on_train_start(trainer, pl_module)
        self.signal.attach(pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begins a task if none is open."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._see_all(trainer)  # values that were read but not yet processed when a checkpoint was written
        if not self.task_is_open and not renews_statistics(trainer):
            self.begin(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Reads and processes the values once there are enough."""
        if renews_statistics(trainer):
            return
        value = self.signal.read(trainer, pl_module, outputs)
        if value is None and trainer.world_size > 1:
            # Reading is a collective: a process without a value contributes NaN, so that none waits for it.
            last = self._unread[-1][1] if self._unread else torch.zeros((), device=pl_module.device)
            value = torch.full_like(last, torch.nan)
        if value is not None:
            self._unread.append((self._batches, value))
        self._batches += 1
        if len(self._unread) >= self.check_every_n_batches:
            self._read(trainer)
            self._see_all(trainer)
            show_in_progress_bar(trainer, self.progress_bar_items())

    def _read(self, trainer: Trainer) -> None:
        device = trainer.strategy.root_device
        batches, values = zip(*self._unread, strict=True)
        means = trainer.strategy.reduce(torch.stack([v.to(device) for v in values]), reduce_op="mean")
        self._unseen.extend(zip(batches, self.signal.values(means).tolist(), strict=True))
        self._unread = []

    def _see_all(self, trainer: Trainer) -> None:
        while self._unseen:
            batch, value = self._unseen.popleft()
            if math.isfinite(value):
                if not self.task_is_open:
                    self.begin(trainer)
                self.see(trainer, batch, value)
                continue
            self.skipped += 1
            if self.skipped == 1:
                rank_zero_warn(
                    f"{type(self).__name__} passes over values that are not finite, such as that of batch "
                    f"{batch}; `skipped` counts them."
                )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Detaches the signal from the module."""
        self.signal.detach()
        super().teardown(trainer, pl_module, stage)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detaches the signal from the module when training fails."""
        self.signal.detach()
        super().on_exception(trainer, pl_module, exception)

    def state_dict(self) -> dict[str, Any]:
        """Adds the signal's state, the values that were read but not yet processed, and the counters."""
        return super().state_dict() | {
            "signal": self.signal.state_dict(),
            "unseen": list(self._unseen),
            "batches": self._batches,
            "skipped": self.skipped,
        }

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Restores the signal, the values not yet processed and the counters."""
        super().restore(state_dict)
        self.signal.load_state_dict(state_dict["signal"])
        self._unseen = deque(state_dict["unseen"])
        self._batches, self.skipped = state_dict["batches"], state_dict["skipped"]

    def process_state(self) -> dict[str, Any]:
        """Values of this process that have not been averaged over processes yet."""
        return {"unread": list(self._unread)}

    def restore_process(self, state_dict: dict[str, Any]) -> None:
        """Restores this process's values that have not been averaged yet."""
        self._unread = list(state_dict["unread"])
