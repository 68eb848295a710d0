"""Two processes on two pretend devices come to the same as two on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy

from tests.every_rule import REHEARSING, RULES
from tests.pretend_device.trainings import assert_alike, one_fit
from tests.processes import train_together
from tests.small import make_trainer


def test_every_rule(tmp_path: Path) -> None:
    train_together(2, train, str(tmp_path))
    for rule in RULES:
        found, expected, second = (
            torch.load(tmp_path / f"{rule}-{name}.pt", weights_only=True)
            for name in ("0-there", "0-cpu", "1-there")
        )
        assert_alike(found, expected)
        if rule in REHEARSING:  # each process remembers samples of its own until a task ends
            found, second = ({"weights": one["/weights"]} for one in (found, second))
        assert_alike(second, found)


def train(rank: int, folder: str) -> None:
    from tests.pretend_device.collectives import PretendDDP
    from tests.pretend_device.device import load, races

    load()

    def trainer(strategy: DDPStrategy, *callbacks: Callback, **options: Any) -> Any:
        return make_trainer(*callbacks, accelerator="auto", devices=2, strategy=strategy, **options)

    strategies = {"cpu": lambda: DDPStrategy(process_group_backend="gloo"), "there": PretendDDP}
    for name, strategy in strategies.items():
        for rule in RULES:
            found = one_fit(rule, lambda *c, strategy=strategy, **o: trainer(strategy(), *c, **o))
            torch.save(found, Path(folder) / f"{rule}-{rank}-{name}.pt")
        torch.distributed.destroy_process_group()
    assert not races()
