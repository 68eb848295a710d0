"""Seeds what a rule draws at the end of a task: samples, and labels from the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from cl_callbacks.tensors.random_numbers import mixed_seed
from cl_callbacks.training.generators import initial_seed
from cl_callbacks.training.model_outputs import ReadsOutputs


def global_seed() -> int:
    """Seed of this training: changes with Lightning's ``seed_everything`` and with ``torch.manual_seed``.

    Lightning keeps its own in the environment, where a module that calls ``torch.manual_seed`` leaves it.
    """
    return mixed_seed(initial_seed(), int(os.environ.get("PL_GLOBAL_SEED", "0")))


class DrawsSamples(ReadsOutputs):
    """Mixin of the rules that measure on samples which they draw from a task.

    Attributes:
        seed: of all draws, the global one when the first training began, and -1 before; it is in checkpoints,
            so that a resumed training draws the same.
        samples_measured: number of samples, over all processes, that the latest task was measured on: at most
            those of the task.
    """

    seed: int = -1
    samples_measured: int = 0

    def count_samples(self, number: int) -> None:
        """Keeps on how many samples a task was measured, for the line at its end."""
        self.samples_measured = number

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the global seed, the first process's, unless there is one already."""
        super().on_train_start(trainer, pl_module)
        if self.seed < 0:
            self.seed = trainer.strategy.broadcast(global_seed())

    def seed_of(self, task: int) -> int:
        """Seed of what is drawn at the end of a task."""
        return mixed_seed(self.seed, task)

    def state_dict(self) -> dict[str, Any]:
        """The rule's state, with its seed."""
        return super().state_dict() | {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a saved state, which has no seed if it was saved before rules had one."""
        super().load_state_dict({"seed": -1, **state_dict} if isinstance(state_dict, Mapping) else state_dict)

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Sets the state from a saved one."""
        super().restore(state_dict)  # type: ignore[misc]
        self.seed = state_dict["seed"]
