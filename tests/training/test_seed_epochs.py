"""Random numbers of each epoch, and the order of its data."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule

from cl_callbacks import EpochBoundaries, SeedEpochs, TaskSequence
from tests.processes import train_together
from tests.small import Net, loader, make_trainer, task


class Draws(Callback):
    """Of all three sources, in each batch."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float, float]] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.found.append((torch.rand(()).item(), np.random.rand(), random.random()))


def drawn(seed: int, before: int) -> list[tuple[float, float, float]]:
    torch.manual_seed(before)
    np.random.seed(before)
    random.seed(before)
    draws = Draws()
    make_trainer(SeedEpochs(seed), draws, max_epochs=2).fit(Net(), loader(*task(0)))
    return draws.found


def test_numbers_depend_on_the_seed_and_the_epoch_alone() -> None:
    found = drawn(seed=0, before=1)
    assert found == drawn(seed=0, before=2)
    for own, other in zip(found, drawn(seed=1, before=1), strict=True):
        assert all(a != b for a, b in zip(own, other, strict=True))
    for own, other in zip(found[:3], found[3:], strict=True):  # another epoch
        assert all(a != b for a, b in zip(own, other, strict=True))


def test_no_such_seed() -> None:
    with pytest.raises(ValueError, match="seed must be a whole number, at least 0; got -1"):
        SeedEpochs(-1)


class Visited(LightningModule):
    """Keeps the samples of each epoch, and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs: dict[int, list[int]] = {}

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.epochs.setdefault(self.current_epoch, []).extend(batch.tolist())
        return self.weight * 0.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def visited(shuffle_seed: int | None, before: int, workers: int = 0, **options: Any) -> dict[int, list[int]]:
    torch.manual_seed(before)
    data = TaskSequence(
        [{"train": torch.arange(12)}] * 2,
        epochs_per_task=2, batch_size=4, shuffle_seed=shuffle_seed, num_workers=workers,
    )  # fmt: skip
    data.val_dataloader = lambda: []  # type: ignore[method-assign]
    options = {"max_epochs": 4, "reload_dataloaders_every_n_epochs": 1} | options
    module = Visited()
    make_trainer(EpochBoundaries(2), **options).fit(module, data)
    return module.epochs


@pytest.mark.parametrize("workers", [0, 1])
def test_the_order_depends_on_the_shuffle_seed_and_the_epoch_alone(workers: int) -> None:
    epochs = visited(0, before=1, workers=workers)
    assert epochs == visited(0, before=2)
    assert all(sorted(order) == list(range(12)) for order in epochs.values())
    assert len({tuple(order) for order in epochs.values()}) == 4
    assert epochs != visited(1, before=1)
    assert visited(None, before=1) != visited(None, before=2)


def work(rank: int, folder: Path) -> None:
    epochs = visited(0, before=rank, strategy="ddp", devices=2)
    torch.save(epochs, folder / f"{rank}.pt")


def test_processes_share_the_data_of_an_order(tmp_path: Path) -> None:
    train_together(2, work, tmp_path)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for epoch in range(4):
        assert sorted(one[epoch] + other[epoch]) == list(range(12))
