"""A user's module, data and Trainer, as small as they can be."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES = 6, 3


class Net(LightningModule):
    """An ordinary classifier, with dropout and BatchNorm so that modes matter."""

    def __init__(self, net: nn.Module | None = None, optimizer: Any = None) -> None:
        super().__init__()
        self.net = net or nn.Sequential(
            nn.Linear(FEATURES, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(8, CLASSES),
        )
        self.optimizer = optimizer or (lambda p: torch.optim.Adam(p, lr=1e-2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch[:2]
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


def plain_net() -> nn.Module:
    """Without randomness: what a plain training loop can repeat to rounding."""
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def task(seed: int, samples: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, FEATURES, generator=generator)
    return x, (x @ torch.randn(FEATURES, CLASSES, generator=generator)).argmax(1)


def loader(*tensors: Tensor, batch_size: int = 8, shuffle: bool = False, **options: Any) -> DataLoader:
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size, shuffle=shuffle, **options)


def make_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "max_epochs": 1,
    }
    return Trainer(callbacks=list(callbacks), **(quiet | options))


def fit_tasks(
    model: LightningModule, *callbacks: Callback, tasks: int = 2, shuffle: bool = True, **options: Any
) -> Trainer:
    """One fit per task, from seed 0."""
    seed_everything(0, verbose=False)
    trainer = make_trainer(*callbacks, **options)
    for index in range(tasks):
        if index:
            trainer.fit_loop.max_epochs += options.get("max_epochs", 1)
        trainer.fit(model, loader(*task(index), shuffle=shuffle))
    return trainer


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])
