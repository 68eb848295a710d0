"""The loss of a task at its beginning and at its end, without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

WINDOW = 10
"""Batches in the mean over the first ones; the mean over the latest is over one ``WINDOW``-th of all."""


def task_loss(trainer: Trainer, outputs: Any) -> Tensor | None:
    """The loss that ``training_step`` returned, from what ``on_train_batch_end`` gets; ``None`` without one.

    It is that of the task alone: pulls are added to gradients, so that this loss does not contain them.
    """
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if not isinstance(loss, Tensor):
        return None
    loss = loss.detach().float()
    # Lightning passes the loss on divided by the number of batches that it accumulates.
    return (loss.mean() if loss.ndim else loss) * trainer.accumulate_grad_batches


class TaskLoss:
    r"""Mean loss over the first ten batches of a task, and over about the latest tenth of all.

    The second mean takes a constant amount of memory for any length of the task, since old batches fade as a
    power of their time, :math:`w_t\propto t^9` after :math:`t` batches:

    .. math:: \bar L_n = \bar L_{n-1} + \frac{10}{n+9}\,(L_n-\bar L_{n-1}) .

    Source: polynomial-decay averaging, Shamir & Zhang 2013 (arXiv 1212.1824).

    Example:
        >>> loss = TaskLoss()
        >>> for value in torch.linspace(2.0, 1.0, 100):
        ...     loss.add(value)
        >>> [round(mean, 2) for mean in loss.means(Trainer(logger=False, enable_checkpointing=False))]
        [1.95, 1.09]
    """

    def __init__(self) -> None:
        self.batches = 0
        """Number of batches that had a loss."""
        self._first = self._latest = torch.tensor(torch.nan)

    def add(self, loss: Tensor | None) -> None:
        """Adds the loss of the next batch, a scalar of single precision; ``None`` if it has none."""
        if loss is None:
            return
        self.batches += 1
        if self.batches == 1:
            self._first, self._latest = loss.clone(), loss.clone()
        if self.batches <= WINDOW:
            self._first.lerp_(loss, 1 / self.batches)
        self._latest.lerp_(loss, WINDOW / (self.batches + WINDOW - 1))

    def means(self, trainer: Trainer) -> tuple[float, float]:
        """Both means, averaged over processes, all of which have to call this; NaN without a loss."""
        means = torch.stack([self._first, self._latest]).to(trainer.strategy.root_device)
        first, latest = trainer.strategy.reduce(means, reduce_op="mean").tolist()
        return first, latest
