"""A network whose layers were placed on two devices by hand, and a Trainer that leaves them there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import Accelerator, CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn import functional as F

from tests.pretend_device.device import DEVICE, PretendAccelerator
from tests.small import CLASSES, FEATURES, make_trainer

Places = tuple[str, str]
PLACES: dict[str, Places] = {
    "two of them": (f"{DEVICE}:0", f"{DEVICE}:1"),
    "the CPU and one": ("cpu", f"{DEVICE}:0"),
    "one and the CPU": (f"{DEVICE}:0", "cpu"),
}
AT_HOME: Places = ("cpu", "cpu")


class Stays(SingleDeviceStrategy):
    """Leaves the module where it is, after the fit too."""

    def model_to_device(self) -> None:
        """The layers are on their devices already."""

    def teardown(self) -> None:
        """Lightning would move the layers to the CPU."""


class Apart(LightningModule):
    """Its first layers are on one device and its last ones on another; batches are on the first."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        torch.manual_seed(0)
        first = nn.Sequential(nn.Linear(FEATURES, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh())
        second = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, CLASSES))
        self.first, self.second = first.double().to(places[0]), second.double().to(places[1])
        self.places = places

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).to(self.places[1]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y.to(self.places[1]))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y.to(self.places[1])).double().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)  # Lightning would load its momentum to one device

    def on_train_end(self) -> None:
        where = [str(layer.weight.device) for layer in (self.first[0], self.second[0])]
        assert tuple(where) == self.places, "the layers were moved"


def staying(places: Places) -> Callable[..., Trainer]:
    """A function that makes a Trainer whose batches are on the device of the first layers."""
    root = torch.device(places[0])
    accelerator: Accelerator = CPUAccelerator() if root.type == "cpu" else PretendAccelerator()

    def trainer(*callbacks: Callback, **options: Any) -> Trainer:
        strategy = Stays(root, accelerator=accelerator)
        return make_trainer(*callbacks, accelerator="auto", devices="auto", strategy=strategy, **options)

    return trainer
