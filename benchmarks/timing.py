"""A Trainer that says nothing, and the time of its steps."""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader


class Moment:
    """A moment in the work of a device.

    On CUDA an event in its stream, for which nothing waits: steps follow each other as they do in training,
    and what the host does meanwhile counts only where the GPU has to wait for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        self.time = time.perf_counter()
        if self.event is not None:
            self.event.record(torch.cuda.current_stream(device))

    def seconds_since(self, before: Moment) -> float:
        if self.event is None or before.event is None:
            return self.time - before.time
        self.event.synchronize()
        return before.event.elapsed_time(self.event) / 1e3


class StepTimes(Callback):
    """Seconds from the end of one batch to that of the next."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self.moments.append(Moment(module.device))

    @property
    def seconds(self) -> list[float]:
        return [after.seconds_since(before) for before, after in pairwise(self.moments)]


def quiet_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    quiet: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    return Trainer(callbacks=list(callbacks), **(quiet | options))


def step_seconds(model: LightningModule, data: DataLoader, *callbacks: Callback, **options: Any) -> float:
    """Median of the steps of a fit after the first."""
    times = StepTimes()
    quiet_trainer(*callbacks, times, **options).fit(model, data)
    return statistics.median(times.seconds)


def bytes_of(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.nbytes
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(bytes_of, values))
