"""How often the hosts of two processes wait for their devices, with each rule and without."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from cl_callbacks import BatchBoundaries, FitBoundaries
from tests.every_rule import RULES, make
from tests.processes import train_together
from tests.small import Net, make_trainer, plain_net, task

BATCHES = 12


class Numbered(Net):
    """Batches ``(x, y, number)``, of which the rules read the first two."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch[:2], batch_idx)


def learn(rank: int, folder: str) -> None:
    from tests.pretend_device.collectives import PretendDDP
    from tests.pretend_device.test_waits_of_boundaries import Waits

    for name in ["none", "batches", *RULES]:
        seen = Waits()
        torch.manual_seed(0)
        callbacks = {"none": [], "batches": [BatchBoundaries(2)]}.get(name) or [FitBoundaries()]
        trainer = make_trainer(
            seen,
            *([make(name)] if name in RULES else []),
            *callbacks,
            max_epochs=2,
            accelerator="auto",
            devices=2,
            strategy=PretendDDP(),
        )
        tensors = task(0, samples=2 * 4 * BATCHES)
        if name == "batches":
            tensors = (*tensors, torch.zeros(len(tensors[0])))
        model = Numbered(plain_net(), partial(torch.optim.SGD, lr=0.1))
        trainer.fit(model, DataLoader(TensorDataset(*tensors), 4))
        torch.save(seen.found[BATCHES + 1 : 2 * BATCHES - 1], Path(folder) / f"{name}.{rank}.pt")


@cache
def found() -> dict[tuple[str, int], list[int]]:
    with TemporaryDirectory() as folder:
        train_together(2, learn, folder)
        names = ["none", "batches", *RULES]
        return {(n, rank): torch.load(Path(folder) / f"{n}.{rank}.pt") for n in names for rank in range(2)}


@pytest.mark.parametrize("name", ["batches", *RULES])
def test_two_processes_wait_no_more_than_without(name: str) -> None:
    # StreamingConsolidation reads the unit of its importance, once in so many steps that it changes little.
    reads = {0, 1} if name.startswith("streaming") else {0}
    for rank in range(2):
        pairs = zip(found()[name, rank], found()["none", rank], strict=True)
        assert {beside - without for beside, without in pairs} == reads
