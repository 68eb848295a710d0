"""What is measured and said of rules on two processes, against one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from cl_callbacks import EWC, MESU, EpochBoundaries, SynapseStatistics
from tests.processes import train_together
from tests.settings.processes import Sharded
from tests.small import Net, loader, make_trainer, plain_net, task
from tests.test_sharded import strategy

pytestmark = pytest.mark.slow
EPOCHS, BATCHES = 5, 10


class TwoTasks(LightningDataModule):
    """The second begins after some epochs; without a difference between processes if ``own`` is 0."""

    def __init__(self, own: int = 0) -> None:
        super().__init__()
        self.own = own

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        x, y = task(self.trainer.current_epoch // EPOCHS + self.own, 8 * BATCHES)
        return loader(x.double(), y)


def train(rules: list[Any], own: int = 0, kind: type[Net] = Net, **options: Any) -> dict[str, Any]:
    """Two tasks; what rules have reached, and by layer."""
    torch.manual_seed(0)
    model = kind(plain_net(), partial(torch.optim.Adam, lr=0.02)).double()
    statistics = SynapseStatistics(every_n_steps=None)
    trainer = make_trainer(
        *rules,
        statistics,
        EpochBoundaries(EPOCHS),
        max_epochs=2 * EPOCHS,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        **options,
    )
    trainer.fit(model, TwoTasks(own))
    return {
        "reached": [rule.rule_scale.reached for rule in rules],
        "levels": [(rule.rule_scale._began, rule.rule_scale._left) for rule in rules],
        "said": [sorted(rule.rule_scale._said) for rule in rules],
        "layers": [m.get("pull_ratio", m.get("update_ratio")) for m in statistics.latest.values()],
    }


def anchored() -> list[Any]:
    few = {"samples": 1}
    return [
        EWC(1e-4, **few, normalize=None),
        EWC(1e7, name="strong", **few, normalize=None),
        EWC(1e7, proximal=True, name="proximal", **few, normalize=None),
    ]


def together(rank: int, folder: Path) -> None:
    found = {
        "own data": train(anchored(), 10 * rank, devices=2, strategy="ddp"),
        "owner": train([MESU(1000, 1e-4)], 10 * rank, devices=2, strategy="ddp"),
        "shards": train(anchored(), 0, Sharded, devices=2, strategy=strategy(2)),
    }
    torch.save(found, folder / f"{rank}.pt")


def test_two_processes_measure_and_say_alike(tmp_path: Path) -> None:
    train_together(2, together, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for run, found in first.items():
        for what in ("said", "reached", "levels"):
            assert str(found[what]) == str(second[run][what]), (run, what)
    alone = train(anchored())
    assert alone["said"] == [["inert"], ["paralysed"], ["paralysed"]]
    assert first["owner"]["said"] == [["paralysed"]]
    shards = first["shards"]
    assert shards["said"] == alone["said"]
    assert shards["reached"] == pytest.approx(alone["reached"], rel=1e-5)
    for found, expected in zip(shards["layers"], alone["layers"], strict=True):
        assert found.keys() == expected.keys() == {"all", "net.0", "net.2"}
        for layer, value in expected.items():
            assert found[layer]["ratio"] == pytest.approx(value["ratio"], rel=1e-5)
