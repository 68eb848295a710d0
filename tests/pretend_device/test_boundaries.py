"""Every boundary finds on the pretend device what it finds on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from cl_callbacks import (
    MAS,
    BatchBoundaries,
    DriftBoundaries,
    EpochBoundaries,
    FitBoundaries,
    PlateauBoundaries,
    SynapticIntelligence,
)
from cl_callbacks.drift import CUSUM, Plateau
from tests.pretend_device.device import trainer_on
from tests.pretend_device.trainings import (
    On,
    Outcome,
    assert_alike,
    net,
    on_the_cpu,
    outcome,
    tensors_in,
    trainer,
)
from tests.small import loader, task


def changing(batches_of_each: int = 80) -> DataLoader:
    """Two tasks one after the other, the second with other inputs and labels."""
    x, y = task(0, 4 * batches_of_each)
    number = torch.arange(2).repeat_interleave(len(x))
    return loader(torch.cat([x, x + 3]).double(), torch.cat([y, (y + 1) % 3]), number, batch_size=4)


class Remembering(MAS):
    def outputs(self, pl_module: Any, batch: Any) -> Any:
        return super().outputs(pl_module, batch[:2])


class Resting(PlateauBoundaries):
    def outputs(self, pl_module: Any, batch: Any) -> Any:
        return super().outputs(pl_module, batch[:2])


BOUNDARIES: dict[str, Callable[[], Any]] = {
    "fit": FitBoundaries,
    "epoch": lambda: EpochBoundaries(1),
    "batch": lambda: BatchBoundaries(2, recent_samples=12),
    "drift": lambda: DriftBoundaries(CUSUM(threshold=6.0), min_task_batches=20),
    "feature shift": lambda: DriftBoundaries(
        CUSUM(threshold=2.0), monitor="feature_shift", min_task_batches=20
    ),
    "plateau": lambda: Resting(Plateau(threshold="absolute", level=0.7, spread=0.2)),
    "hard samples": lambda: Resting(Plateau(threshold="absolute", level=0.7, spread=0.2), hard_samples=6),
}


class Ends(Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.steps.append(trainer.global_step)


def run(boundaries: Any, on: On) -> tuple[list[int], Outcome]:
    rules, model, ends = [Remembering(samples=20), SynapticIntelligence(1.0)], net(), Ends()
    trainer(on, *rules, boundaries, ends, max_epochs=1).fit(model, changing())
    return ends.steps, outcome(model, *rules) | tensors_in(boundaries.state_dict())


@pytest.mark.parametrize("name", BOUNDARIES)
def test_the_same_tasks_with_the_same_state(name: str) -> None:
    expected, state = run(BOUNDARIES[name](), on_the_cpu)
    found, state_there = run(BOUNDARIES[name](), trainer_on)
    assert found == expected and found
    assert_alike(state_there, state)


class Reading(Callback):
    """Reads what the boundaries keep while the device may still be copying it."""

    batches = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        (boundaries,) = (c for c in trainer.callbacks if isinstance(c, DriftBoundaries))
        for kept in (
            boundaries.state_dict(),
            copy.deepcopy(boundaries.recent_batches),
            list(boundaries.recent_batches),
        ):
            found = tensors_in(kept if isinstance(kept, dict | list) else vars(kept)["_kept"])
            assert found and not any(t.isnan().any() for t in found.values())
        self.batches += 1


def test_recent_batches_have_arrived_when_the_host_reads_them() -> None:
    boundaries, reading = BOUNDARIES["drift"](), Reading()
    trainer(trainer_on, Remembering(samples=20), boundaries, reading, max_epochs=1).fit(net(), changing(20))
    assert reading.batches == 40
