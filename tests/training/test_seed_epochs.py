"""Random numbers of each epoch, and the order of its data."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from cl_callbacks import EpochBoundaries, SeedEpochs, TaskSequence
from tests.processes import train_together
from tests.small import CLASSES, FEATURES, Net, loader, make_trainer, task, weights


class Draws(Callback):
    """Of all three sources, in each batch and after each epoch."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float, float]] = []
        self.between: list[tuple[float, float, float]] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.found.append((torch.rand(()).item(), np.random.rand(), random.random()))

    def on_train_epoch_end(self, *args: Any) -> None:
        self.between.append((torch.rand(()).item(), np.random.rand(), random.random()))


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
    visits = visited(0, before=rank, strategy="ddp", devices=2)
    whole = dropping_out(folder, before=10 + rank)
    again = dropping_out(folder, before=20 + rank, resume=True)
    torch.save((visits, whole, again), folder / f"{rank}.pt")


def dropping_out(folder: Path, before: int, resume: bool = False) -> dict[str, Any]:
    """What one of two processes draws, and its weights after three epochs, or the last two of them."""
    torch.manual_seed(0)
    model = Net(nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES)))
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(before)
    draws = Draws()
    each_epoch = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = make_trainer(
        SeedEpochs(), draws, each_epoch, max_epochs=3, strategy="ddp", devices=2, enable_checkpointing=True
    )
    trainer.fit(
        model,
        loader(*task(0), batch_size=4, shuffle=True),
        ckpt_path=folder / "epoch=0.ckpt" if resume else None,
        weights_only=False,
    )
    return {"numbers": draws.found, "between": draws.between, "weights": weights(model)}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("processes")
    train_together(2, work, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_processes_share_the_data_of_an_order(processes: list[Any]) -> None:
    (one, *_), (other, *_) = processes
    for epoch in range(4):
        assert sorted(one[epoch] + other[epoch]) == list(range(12))


def test_processes_draw_different_numbers(processes: list[Any]) -> None:
    (_, one, _), (_, other, _) = processes
    assert len(one["numbers"]) == 9
    for own, others in zip(one["numbers"], other["numbers"], strict=True):
        assert all(a != b for a, b in zip(own, others, strict=True))


def test_processes_draw_the_same_numbers_between_epochs(processes: list[Any]) -> None:
    """When a sampler of the user, which takes every second sample of an order, draws that order."""
    (_, one, _), (_, other, _) = processes
    assert one["between"] == other["between"]
    assert len(set(one["between"])) == 3


def test_processes_that_resume_draw_the_same_again(processes: list[Any]) -> None:
    for _, whole, again in processes:
        assert again["numbers"] == whole["numbers"][3:]
        assert torch.equal(again["weights"], whole["weights"])
    assert torch.equal(processes[0][1]["weights"], processes[1][1]["weights"])


@pytest.mark.parametrize(("shuffle", "said"), [(True, 1), (False, 0)])
def test_an_order_that_a_resume_does_not_repeat_is_said_once(shuffle: bool, said: int) -> None:
    data = TensorDataset(torch.randn(8, FEATURES), torch.zeros(8, dtype=torch.long))
    sampler = DistributedSampler(data, num_replicas=1, rank=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        own = {"shuffle": True} if shuffle else {"sampler": sampler}
        make_trainer(SeedEpochs(0), max_epochs=2).fit(Net(), DataLoader(data, 4, **own))
    assert sum("sees its samples in another order" in str(found.message) for found in caught) == said
