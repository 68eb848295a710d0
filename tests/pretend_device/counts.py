"""How often the host waits for the device in steps that do not log, and at the end of a task."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from cl_callbacks import (
    BatchBoundaries,
    DriftBoundaries,
    EpochBoundaries,
    FitBoundaries,
    PlateauBoundaries,
    SeedEpochs,
    SynapseStatistics,
)
from tests.every_rule import RULES, make
from tests.pretend_device.device import trainer_on, waits
from tests.processes import train_together
from tests.small import Net, loader, make_trainer, plain_net, task

SETTINGS: dict[str, dict[str, Any]] = {
    "a step": {},
    "two batches a step": {"accumulate_grad_batches": 2},
    "16-mixed": {"precision": "16-mixed"},
}
OTHERS: dict[str, Callable[[], list[Callback]]] = {
    "FitBoundaries()": lambda: [FitBoundaries()],
    "EpochBoundaries(1)": lambda: [EpochBoundaries(1)],
    "BatchBoundaries(key=2)": lambda: [BatchBoundaries(key=2)],
    "DriftBoundaries()": lambda: [DriftBoundaries()],
    "DriftBoundaries(monitor='feature_shift')": lambda: [DriftBoundaries(monitor="feature_shift")],
    "PlateauBoundaries()": lambda: [PlateauBoundaries()],
    "PlateauBoundaries(hard_samples=10)": lambda: [PlateauBoundaries(hard_samples=10)],
    "SynapseStatistics()": lambda: [SynapseStatistics(every_n_steps=10**6)],
    "SeedEpochs()": lambda: [SeedEpochs()],
}


BATCHES = 58
"""In an epoch; 55 of 58 are counted: a multiple of what checks every five batches."""


class Numbered(Net):
    """Its batches carry the number of their task."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch[:2], batch_idx)


class Counting(Callback):
    """Notes the waits between the beginnings of batches, in the second epoch and from the third batch on."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._before: int | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._before is not None:
            self.steps.append(waits() - self._before)
        self._before = waits() if trainer.current_epoch and batch_idx >= 2 else None

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._before = None

    @property
    def mean(self) -> float:
        return sum(self.steps) / len(self.steps)


def per_step(*callbacks: Any, on: Callable[..., Any] = trainer_on, **options: Any) -> float:
    """Waits of a training with these callbacks, per batch."""
    torch.manual_seed(0)
    counting, samples = Counting(), 8 * BATCHES
    numbered = any(isinstance(callback, BatchBoundaries) for callback in callbacks)
    data = loader(*task(0, samples), *([torch.zeros(samples, dtype=torch.long)] if numbered else []))
    with tempfile.TemporaryDirectory() as folder:
        logger = CSVLogger(folder)
        options = {"logger": logger, "log_every_n_steps": 10**6, "max_epochs": 2} | options
        on(counting, *callbacks, **options).fit((Numbered if numbered else Net)(plain_net()), data)
    return counting.mean


@cache
def of_rule(rule: str | None) -> dict[str, float]:
    """Waits per batch with a rule in each setting; with ``None`` those without any."""

    def measured(setting: dict[str, Any], **of_the_rule: Any) -> float:
        memory = [] if rule is None else [make(rule, **of_the_rule), EpochBoundaries(1)]
        return per_step(*memory, **setting)

    found = {name: measured(setting) for name, setting in SETTINGS.items()}
    return found | {"state on the CPU": measured({}, state_device="cpu")}


def beyond_none(rule: str) -> dict[str, float]:
    """Waits per batch that a training without the rule does not have, and those at the end of a task."""
    one, two = of_rule(None), of_two_processes()
    found = {name: waits - one[name] for name, waits in of_rule(rule).items()}
    return found | {"two processes": two[rule] - two[None], "end of a task": at_the_end(rule)}


@cache
def of_other(name: str) -> float:
    """Waits per batch with a rule that reads no data, and with these callbacks."""
    return per_step(make("si"), *OTHERS[name]())


@cache
def at_the_end(rule: str) -> float:
    """Waits at the end of a task, for each batch that importance is measured on."""

    def waited(batches: int) -> int:
        counting = AtTheEnd()
        memory = make(rule)
        torch.manual_seed(0)
        on = trainer_on(memory, EpochBoundaries(1), counting, max_epochs=1)
        on.fit(Net(plain_net()), loader(*task(0, 8 * batches)))
        return counting.waits

    return (waited(8) - waited(4)) / 4


class AtTheEnd(Callback):
    """Notes the waits between the last batch of an epoch and the end of its task."""

    waits = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.waits = -waits()

    def on_task_end(self, *args: Any) -> None:
        self.waits += waits()


@cache
def of_two_processes() -> dict[str | None, float]:
    """Waits per batch with each rule and with none, in the first of two processes that train together."""
    rules = [None, *RULES]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.json"
        train_together(2, _measure_together, rules, str(path))
        return dict(zip(rules, json.loads(path.read_text()), strict=True))


def _measure_together(rank: int, rules: list[str | None], path: str) -> None:
    from tests.pretend_device.collectives import PretendDDP  # in this process: it loads the device

    def on(*callbacks: Callback, **options: Any) -> Any:
        return make_trainer(*callbacks, accelerator="auto", devices=2, strategy=PretendDDP(), **options)

    found = [
        per_step(
            *([] if rule is None else [make(rule), EpochBoundaries(1)]), on=on, accumulate_grad_batches=2
        )
        for rule in rules
    ]
    if rank == 0:
        Path(path).write_text(json.dumps(found))
