"""The pass over sharded parameters in the Trainer's precision: all processes agree on the scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from cl_callbacks import EWC
from tests.processes import train_together
from tests.settings.processes import Sharded
from tests.small import Net, loader, make_trainer, plain_net, task
from tests.training.test_pass_precision import plugin

pytestmark = pytest.mark.slow
WITHIN = {"bf16-mixed": 2e-2, "16-mixed": 5e-3}


class Faint(Net):
    """Has gradients that float16 cannot hold."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).float() * 1e-8


class FaintSharded(Faint):
    configure_model = Sharded.configure_model


def rule() -> EWC:
    return EWC(1.0, samples=None, normalize=None, estimator="empirical")


def build(kind: type[Net]) -> Net:
    torch.manual_seed(0)
    return kind(plain_net(), lambda p: torch.optim.SGD(p, lr=0.0))


def fit(rank: int, folder: Path) -> None:
    for precision in WITHIN:
        ewc = rule()
        strategy = ModelParallelStrategy(2, 1)
        trainer = make_trainer(ewc, plugins=[plugin(precision)], devices=2, strategy=strategy)
        trainer.fit(build(FaintSharded), loader(*task(0)))
        torch.save(ewc.synapses.state_dict()["importance"], folder / f"{precision}-{rank}.pt")


def test_sharded_importance_in_half_precision(tmp_path: Path) -> None:
    train_together(2, fit, tmp_path)
    ewc = rule()
    make_trainer(ewc).fit(build(Faint), loader(*task(0)))
    expected = ewc.synapses.state_dict()["importance"]
    for precision, within in WITHIN.items():
        for rank in range(2):
            found = torch.load(tmp_path / f"{precision}-{rank}.pt")
            for name, value in expected.items():
                assert value.norm() > 0
                assert (found[name] - value).norm() < within * value.norm()
