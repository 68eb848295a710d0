"""A training script that somebody already has, and the two lines that let its network keep what it learned.

    python examples/existing_trainer.py            # without the callback, then with it; some seconds

An ordinary Lightning script: a module, a DataLoader for each task, a Trainer that is fitted to one after the
other. The tasks are scikit-learn's handwritten digits, each time with the pixels in another fixed order. The
lines marked ``# added`` are all that continual learning takes.
"""

from __future__ import annotations

import logging
import warnings

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from cl_callbacks import EWC  # added

TASKS, EPOCHS = 3, 8


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("test_acc", (self(x).argmax(1) == y).float().mean(), batch_size=len(y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def loaders() -> list[tuple[DataLoader, DataLoader]]:
    """Training and test data of each task."""
    pixels, labels = load_digits(return_X_y=True)
    splits = train_test_split(
        torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels), test_size=0.2, random_state=0
    )
    found = []
    for task in range(TASKS):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(task))
        train = TensorDataset(splits[0][:, order], splits[2])
        test = TensorDataset(splits[1][:, order], splits[3])
        found.append((DataLoader(train, batch_size=32, shuffle=True), DataLoader(test, batch_size=360)))
    return found


def main(remember: bool) -> float:
    """The accuracy on the first task after the last."""
    seed_everything(0, verbose=False)
    tasks, model = loaders(), Classifier()
    trainer = Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[EWC()] if remember else [],  # added
    )  # fmt: skip
    for train, _ in tasks:
        trainer.fit(model, train)
        trainer.fit_loop.max_epochs += EPOCHS  # Lightning counts epochs on from fit to fit
    return trainer.test(model, tasks[0][1], verbose=False)[0]["test_acc"]


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*(num_workers|LeafSpec).*")
    print(
        f"first task after the last, without: {main(remember=False):.3f}, with EWC: {main(remember=True):.3f}"
    )
