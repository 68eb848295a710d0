"""Learning-rate warm-up at the start of each task."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class TaskWarmup(LRScheduler):
    """Increases the learning rate linearly to its full value over the first steps of each task.

    Args:
        optimizer: the optimizer to schedule.
        steps: number of warm-up steps; 0 for the full rate throughout.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> warmup = TaskWarmup(optimizer, steps=2)
        >>> rates = []
        >>> for step in range(6):
        ...     if step == 3: warmup.restart()
        ...     rates += warmup.get_last_lr()
        ...     optimizer.step()
        ...     warmup.step()
        >>> rates
        [0.5, 1.0, 1.0, 0.5, 1.0, 1.0]
    """

    def __init__(self, optimizer: Optimizer, steps: int) -> None:
        self.steps, self.began = steps, 0
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Learning rates of the next step, one per parameter group."""
        done = self.last_epoch - self.began
        factor = min(1.0, (done + 1) / self.steps) if self.steps else 1.0
        return [rate * factor for rate in self.base_lrs]

    def restart(self) -> None:
        """Restarts the warm-up with the next step."""
        self.began = self.last_epoch
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate
