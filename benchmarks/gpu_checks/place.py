"""Where a check trains: a device, and Trainers on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from timing import quiet_trainer

FEW = ("EWC", "KFACLaplace", "BennaFusi", "MESU")


@dataclass(frozen=True)
class Place:
    """A device, and whether to look at a few rules only."""

    device: str
    """``"cuda"``, ``"cpu"``, or ``"pretend"``: the device of the tests, which behaves like a GPU."""
    quick: bool = False

    @property
    def on_cpu(self) -> Place:
        return replace(self, device="cpu")

    def prepare(self) -> None:
        """What a process has to do once before it uses the device."""
        if self.device == "pretend":
            from tests.pretend_device.device import load

            load()
        else:
            # Read when CUDA is first used; Trainer(deterministic=True) needs it.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def trainer(self, *callbacks: Callback, **options: Any) -> Trainer:
        if self.device == "pretend":
            from tests.pretend_device.device import trainer_on

            return trainer_on(*callbacks, **options)
        return quiet_trainer(*callbacks, accelerator=self.device, **options)

    def synchronize(self) -> None:
        if self.device != "cpu":
            torch.get_device_module(self.device).synchronize()

    def random_state(self) -> torch.Tensor:
        """State of the generator from which training draws here."""
        if self.device == "cpu":
            return torch.get_rng_state()
        return torch.get_device_module(self.device).get_rng_state()

    def of(self, rules: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
        """The rules to look at."""
        return {name: make for name, make in rules.items() if name in FEW or not self.quick}
