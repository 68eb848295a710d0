"""The two means of a task's loss, against the plain sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from cl_callbacks.training.task_loss import TaskLoss, task_loss
from tests.small import Net, loader, make_trainer, plain_net, task


def test_the_latest_mean_has_weights_that_grow_as_a_power() -> None:
    """Of a tenth: exactly the products of the shares, and half of it on the latest fourteenth."""
    n = 400
    values = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = TaskLoss()
    for value in values.float():
        loss.add(value)
    first, latest = loss.means(make_trainer())
    # w_t is proportional to t (t + 1) … (t + 8): a falling factorial, near t ** 9.
    t = torch.arange(1, n + 1, dtype=torch.float64)
    weight = torch.stack([t + k for k in range(9)]).prod(0)
    expected = (weight * values).sum() / weight.sum()
    assert latest == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    assert first == pytest.approx(values[:10].mean().item(), rel=1e-5)
    assert weight[-n // 10 :].sum() / weight.sum() > 0.6


def test_without_a_loss_nothing_is_known() -> None:
    loss = TaskLoss()
    loss.add(None)
    assert loss.batches == 0
    assert all(mean != mean for mean in loss.means(make_trainer()))


def test_the_loss_is_that_of_the_module_whatever_is_accumulated() -> None:
    class Kept(Callback):
        def __init__(self) -> None:
            self.found: list[Tensor | None] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
            self.found.append(task_loss(trainer, outputs))

    class Constant(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx) * 0 + 4.0

    kept = Kept()
    make_trainer(kept, accumulate_grad_batches=3).fit(Constant(plain_net()), loader(*task(0)))
    assert [found if found is None else found.item() for found in kept.found] == [4.0, None, 4.0]
