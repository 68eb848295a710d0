"""False alarms on losses that do not change, but depend on each other.

    python benchmarks/alarms.py --json alarms.json    # some minutes
    python benchmarks/alarms.py --seeds               # made-up losses only

Made-up: 20 streams of 5,000 losses each. Independent ones; autoregressive ones, whose logarithm correlates by
rho with the one before; a sine of 30 % with a random phase; and data sorted by class, where each of ten
classes has its own loss, in the same order again and again. Trained: digits in an order drawn anew for each
epoch, where cosine annealing restarts its learning rate every 200 or 450 batches, and sorted by class in
batches of 8. Prints false alarms per 1,000 losses.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from boundaries import Classifier, task_sequence
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from torch.utils.data import DataLoader, TensorDataset

from cl_callbacks import DriftBoundaries
from cl_callbacks.data.image_tasks import as_is
from cl_callbacks.drift import RiseMonitor

FIRST_SEED = 100  # of the made-up streams; the estimate of the dependence was chosen on other seeds
CLASSES = (0.2, 0.3, 0.25, 0.9, 0.4, 0.2, 0.6, 1.0, 0.3, 0.5)


def autoregressive(numbers: random.Random, steps: int, rho: float) -> Iterator[float]:
    x = numbers.gauss(0, 1)
    for _ in range(steps):
        yield math.exp(0.3 * x)
        x = rho * x + math.sqrt(1 - rho * rho) * numbers.gauss(0, 1)


def sine(numbers: random.Random, steps: int, period: int) -> Iterator[float]:
    phase = numbers.uniform(0, 2 * math.pi)
    for step in range(steps):
        yield math.exp(0.3 * math.sin(2 * math.pi * step / period + phase) + numbers.gauss(0, 0.2))


def by_class(numbers: random.Random, steps: int, period: int) -> Iterator[float]:
    for step in range(steps):
        yield CLASSES[10 * (step % period) // period] * math.exp(numbers.gauss(0, 0.2))


MADE_UP: dict[str, Callable[[random.Random, int], Iterator[float]]] = {
    "independent": lambda numbers, steps: autoregressive(numbers, steps, 0.0),
    "rho = 0.3": lambda numbers, steps: autoregressive(numbers, steps, 0.3),
    "rho = 0.5": lambda numbers, steps: autoregressive(numbers, steps, 0.5),
    "rho = 0.7": lambda numbers, steps: autoregressive(numbers, steps, 0.7),
    "rho = 0.9": lambda numbers, steps: autoregressive(numbers, steps, 0.9),
    "sine, period 100": lambda numbers, steps: sine(numbers, steps, 100),
    "sine, period 200": lambda numbers, steps: sine(numbers, steps, 200),
    "by class, period 100": lambda numbers, steps: by_class(numbers, steps, 100),
    "by class, period 200": lambda numbers, steps: by_class(numbers, steps, 200),
}


def alarms(losses: Iterator[float]) -> int:
    monitor, found = RiseMonitor(), 0
    for loss in losses:
        monitor.update(loss)
        if monitor.drift_detected:
            found += 1
            monitor.restart()
    return found


class Restarting(Classifier):
    """Its learning rate falls to 0 and starts again, every so many batches; with 0 it stays."""

    def __init__(self, period: int) -> None:
        super().__init__(256)
        self.period = period

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        if not self.period:
            return optimizer
        schedule = CosineAnnealingWarmRestarts(optimizer, self.period)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trained(seed: int, steps: int, period: int, batch_size: int = 32, ordered: bool = False) -> int:
    """Number of tasks that end while digits are trained on for so many batches, without a change."""
    seed_everything(seed, verbose=False)
    data = task_sequence("digits", None, 2, seed).tasks[0]["train"]
    x, y = next(iter(DataLoader(data, len(data), collate_fn=as_is)))
    if ordered:
        order = y.argsort(stable=True)
        x, y = x[order], y[order]
    boundaries = DriftBoundaries()
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        callbacks=[boundaries],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(Restarting(period), DataLoader(TensorDataset(x, y), batch_size, shuffle=not ordered))
    return len(boundaries.found)


TRAINED: dict[str, Callable[[int, int], int]] = {
    "digits, restarts every 200": lambda seed, steps: trained(seed, steps, 200),
    "digits, restarts every 450": lambda seed, steps: trained(seed, steps, 450),
    "digits by class, batches of 8": lambda seed, steps: trained(seed, steps, 0, batch_size=8, ordered=True),
}


def measure(streams: int, steps: int, seeds: list[int]) -> dict[str, float]:
    found = {}
    for name, stream in MADE_UP.items():
        count = sum(alarms(stream(random.Random(FIRST_SEED + i), steps)) for i in range(streams))
        found[name] = 1000 * count / (streams * steps)
    if seeds:
        for name, train in TRAINED.items():
            found[name] = 1000 * sum(train(seed, steps) for seed in seeds) / (len(seeds) * steps)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of the trainings on digits")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    results = measure(args.streams, args.steps, args.seeds)
    table = Table(title="false alarms per 1,000 losses")
    table.add_column("losses")
    table.add_column("alarms", justify="right")
    for name, value in results.items():
        table.add_row(name, f"{value:.2f}")
    Console(width=80).print(table)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
