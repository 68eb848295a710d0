"""Two tasks in one fit, with one rule or none."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from cl_callbacks import EpochBoundaries, SynapticCallback
from cl_callbacks.synapses.state import plain_name
from tests import every_rule
from tests.settings.outcomes import Run
from tests.small import Net, loader, make_trainer, plain_net, task

EPOCHS, SAMPLES, BATCH = 2, 20, 8  # per task; the last batch of each epoch is smaller


class Tasks(LightningDataModule):
    """Data that change after every second epoch."""

    def __init__(self, first: int = 0, batch_size: int = BATCH, **changes: Any) -> None:
        super().__init__()
        self.first, self.batch_size, self.changes = first, batch_size, changes

    def train_dataloader(self) -> DataLoader:
        return loader(*self.samples(), batch_size=self.batch_size)

    def samples(self) -> tuple[torch.Tensor, ...]:
        return task(self.first + self.trainer.current_epoch // EPOCHS, SAMPLES)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def module(kind: type[Net] = Net, optimizer: Any = sgd) -> Any:
    """Always with the same weights, and without randomness."""
    torch.manual_seed(0)
    return kind(plain_net(), optimizer)


def train(
    model: LightningModule,
    rule: SynapticCallback | None,
    *others: SynapticCallback,
    data: LightningDataModule | None = None,
    boundaries: EpochBoundaries | None = None,
    tasks: int = 2,
    **options: Any,
) -> Run:
    trainer = make_trainer(
        *([] if rule is None else [rule]),
        *others,
        boundaries or EpochBoundaries(EPOCHS),
        max_epochs=tasks * EPOCHS,
        reload_dataloaders_every_n_epochs=1,
        **options,
    )
    trainer.fit(model, data or Tasks())
    return outcome(model, rule)


def outcome(model: LightningModule, rule: SynapticCallback | None) -> Run:
    weights = {plain_name(name): p.detach().clone() for name, p in model.named_parameters()}
    return Run(weights, {} if rule is None else state(rule))


def state(rule: SynapticCallback) -> dict[str, Tensor]:
    """Of samples, which they are: they are kept as they come, and some settings convert them.

    Without teachers, which are networks, in their own precision; what they teach is in the weights.
    """
    found = every_rule.state(rule).items()
    return {key: value for key, value in found if "/values/" not in key and "/teacher/" not in key}


def make(rule: str | None, **options: Any) -> Any:
    return None if rule is None else every_rule.make(rule, **options)


@cache
def alone(rule: str) -> Run:
    """Under no setting; the twin of several."""
    return train(module(), make(rule))
