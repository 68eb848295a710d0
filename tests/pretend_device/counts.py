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
BATCH_BOUNDARIES = "BatchBoundaries(key=2)"
OTHERS: dict[str, Callable[[], list[Callback]]] = {
    "FitBoundaries()": lambda: [FitBoundaries()],
    "EpochBoundaries(1)": lambda: [EpochBoundaries(1)],
    BATCH_BOUNDARIES: lambda: [BatchBoundaries(key=2)],
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


class Waits(Callback):
    """Notes the waits from the beginning of each batch to that of the next; goes first in the list."""

    def __init__(self) -> None:
        self.found: list[int] = []
        self._before: int | None = None

    def on_train_batch_start(self, *args: Any) -> None:
        now = waits()
        if self._before is not None:
            self.found.append(now - self._before)
        self._before = now


def in_second_epoch(*callbacks: Any, on: Callable[..., Any] = trainer_on, **options: Any) -> list[int]:
    """Waits in each batch of a training with these callbacks, from the third batch of its second epoch on."""
    torch.manual_seed(0)
    seen, samples = Waits(), 8 * BATCHES
    numbered = any(isinstance(callback, BatchBoundaries) for callback in callbacks)
    data = loader(*task(0, samples), *([torch.zeros(samples, dtype=torch.long)] if numbered else []))
    with tempfile.TemporaryDirectory() as folder:
        logger = CSVLogger(folder)
        options = {"logger": logger, "log_every_n_steps": 10**6, "max_epochs": 2} | options
        trainer = on(seen, *callbacks, **options)
        trainer.fit((Numbered if numbered else Net)(plain_net()), data)
    batches = trainer.num_training_batches
    return seen.found[batches + 2 : 2 * batches - 1]


def mean(counted: list[int]) -> float:
    return sum(counted) / len(counted)


@cache
def of_rule(rule: str | None) -> dict[str, float]:
    """Waits per batch with a rule in each setting; with ``None`` those without any."""

    def measured(setting: dict[str, Any], **of_the_rule: Any) -> float:
        memory = [] if rule is None else [make(rule, **of_the_rule), EpochBoundaries(1)]
        return mean(in_second_epoch(*memory, **setting))

    found = {name: measured(setting) for name, setting in SETTINGS.items()}
    return found | {"state on the CPU": measured({}, state_device="cpu")}


def beyond_none(rule: str) -> dict[str, float]:
    """Waits per batch that a training without the rule does not have, and those at the end of a task."""
    one = of_rule(None)
    found = {name: waits - one[name] for name, waits in of_rule(rule).items()}
    of_both = [waits for process in beyond_none_together(rule) for waits in process]
    return found | {"two processes": mean(of_both), "end of a task": at_the_end(rule)}


@cache
def of_other(name: str) -> float:
    """Waits per batch with a rule that reads no data, and with these callbacks."""
    return mean(in_second_epoch(make("si"), *OTHERS[name]()))


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

    return max(waited(8) - waited(4), 0) / 4


class AtTheEnd(Callback):
    """Notes the waits between the last batch of an epoch and the end of its task."""

    waits = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.waits = -waits()

    def on_task_end(self, *args: Any) -> None:
        self.waits += waits()


def beyond_none_together(name: str) -> list[list[int]]:
    """Waits in each batch that two processes do not have without a rule or boundary, for each process.

    With a step in each batch, and then with one in every second batch.
    """
    return [
        [more - without for more, without in zip(found[name], found["none"], strict=True)]
        for found in _of_two_processes()
    ]


@cache
def _of_two_processes() -> list[dict[str, list[int]]]:
    with tempfile.TemporaryDirectory() as folder:
        train_together(2, _measure_together, folder)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(2)]


def _measure_together(rank: int, folder: str) -> None:
    from tests.pretend_device.collectives import PretendDDP  # in this process: it loads the device

    def on(*callbacks: Callback, **options: Any) -> Any:
        return make_trainer(*callbacks, accelerator="auto", devices=2, strategy=PretendDDP(), **options)

    kinds: dict[str, Callable[[], list[Any]]] = {
        "none": list,
        BATCH_BOUNDARIES: OTHERS[BATCH_BOUNDARIES],
        **{rule: lambda rule=rule: [make(rule), EpochBoundaries(1)] for rule in RULES},
    }
    found = {
        name: [n for k in (1, 2) for n in in_second_epoch(*build(), on=on, accumulate_grad_batches=k)]
        for name, build in kinds.items()
    }
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
