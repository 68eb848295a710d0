"""A sampler of the user that processes divide: what a measurement within an epoch reads, and leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Generator
from torch.utils.data import DataLoader, Sampler, SubsetRandomSampler, TensorDataset

from cl_callbacks.training.quiet import quiet
from cl_callbacks.training.task_batches import task_batches
from tests.processes import train_together
from tests.small import FEATURES, Net, make_trainer, plain_net

SAMPLES = 16


def numbered() -> TensorDataset:
    """Samples that are told apart by their first feature."""
    x = torch.zeros(SAMPLES, FEATURES)
    x[:, 0] = torch.arange(SAMPLES)
    return TensorDataset(x, torch.zeros(SAMPLES, dtype=torch.long))


class Measuring(Callback):
    """Notes what training sees, and what a measurement in the middle of the first epoch does."""

    def __init__(self, measure: bool) -> None:
        self.measure = measure
        self.trained: list[float] = []
        self.measured: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.trained += batch[0][:, 0].tolist()
        if self.measure and trainer.global_step == 1:
            with quiet(trainer, pl_module, 5):
                self.measured = [i for x, _ in task_batches(trainer, None, 5) for i in x[:, 0].tolist()]


def work(rank: int, folder: Path) -> None:
    found = {}
    for own in (False, True):
        for measure in (False, True):
            torch.manual_seed(0)
            generator = Generator().manual_seed(1) if own else None
            sampler: Sampler[int] = SubsetRandomSampler(range(SAMPLES), generator)
            seen = Measuring(measure)
            trainer = make_trainer(seen, max_epochs=3, devices=2, strategy="ddp")
            trainer.fit(Net(plain_net()), DataLoader(numbered(), 2, sampler=sampler))
            found[own, measure] = (seen.trained, seen.measured)
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("divided")
    train_together(2, work, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("own", [False, True])
def test_each_sample_is_measured_by_one_process(processes: list[Any], own: bool) -> None:
    measured = [found[own, True][1] for found in processes]
    assert sorted(measured[0] + measured[1]) == list(range(SAMPLES))


@pytest.mark.parametrize("own", [False, True])
def test_training_goes_on_with_the_same_samples(processes: list[Any], own: bool) -> None:
    for found in processes:
        assert found[own, True][0] == found[own, False][0]
    epoch = SAMPLES // 2
    for start in range(0, 3 * epoch, epoch):
        both = [i for found in processes for i in found[own, True][0][start : start + epoch]]
        assert sorted(both) == list(range(SAMPLES))
