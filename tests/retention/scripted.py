"""A module that learns a task in one step, and whose scores are known functions of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cl_callbacks import EpochBoundaries
from tests.small import make_trainer

TARGETS = (1.0, 3.0, -0.5)


class Scripted(LightningModule):
    r"""One shared weight s and a head h_k for each task, which begin at 0.

    A step of task k sets s to the target t_k and h_k to 1; the score on it is 1 - (s - t_k)^2 - (h_k - 1)^2.
    """

    def __init__(self, targets: tuple[float, ...] = TARGETS, apart: float = 0.0, steps: int = 1) -> None:
        super().__init__()
        self.targets, self.apart, self.steps = targets, apart, steps
        self.shared = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.heads = nn.ParameterList(torch.zeros(1, dtype=torch.float64) for _ in targets)
        self.validations = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.shared * x

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (task,) = batch
        k = int(task[0])
        loss = (self.shared - self.targets[k]) ** 2 + (self.heads[k] - 1) ** 2
        return 0.5 * loss.sum()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("score", self.score(dataloader_idx), batch_size=1)

    def score(self, k: int) -> Tensor:
        """Each process scores towards a target of its own, ``apart`` from that of the task."""
        target = self.targets[k] + self.apart * (1 - 2 * self.global_rank)
        return (1 - (self.shared - target) ** 2 - (self.heads[k] - 1) ** 2).sum()

    def on_validation_start(self) -> None:
        self.validations += 1

    def train_dataloader(self) -> Any:
        data = torch.full((self.steps,), float(self.trainer.current_epoch % len(self.targets)))
        return DataLoader(TensorDataset(data))

    def val_dataloader(self) -> Any:
        return [DataLoader(TensorDataset(torch.zeros(1))) for _ in self.targets]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0 if self.steps == 1 else 0.5)


def fit(
    *callbacks: Callback,
    model: LightningModule | None = None,
    resumed: Path | None = None,
    **options: Any,
) -> Trainer:
    """One fit over the tasks, each an epoch, without validation of the Trainer's own at their ends."""
    model = Scripted() if model is None else model
    usual: dict[str, Any] = {
        "max_epochs": 2,
        "reload_dataloaders_every_n_epochs": 1,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": 100,
    }
    trainer = make_trainer(EpochBoundaries(1), *callbacks, **(usual | options))
    trainer.fit(model, ckpt_path=resumed, weights_only=True)
    return trainer
