"""What the number of tasks costs: nothing.

    python benchmarks/scaling.py [--tasks 200]

Trains one Trainer through many short tasks with EWC and compares the optimizer steps of the second task
with those of the last: time per step, and bytes of state. Steps of both kinds are timed again in turn at
the end, on the same machine state, because a machine's speed drifts over a run.
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from cl_callbacks import EWC, EpochBoundaries

STEPS = 20  # per task


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


class Snapshots(Callback):
    """Keeps the rule's state as it was in some tasks."""

    def __init__(self, rule: EWC, tasks: set[int]) -> None:
        self.rule, self.tasks = rule, tasks
        self.states: dict[int, dict[str, Any]] = {}

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        if task + 1 in self.tasks:
            self.states[task + 1] = copy.deepcopy(self.rule.state_dict())


class StepTimes(Callback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def trainer(*callbacks: Callback, epochs: int) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )


def bytes_of(state: dict[str, Any]) -> int:
    return sum(t.nbytes for field in state["synapses"].values() for t in field.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    data = DataLoader(
        TensorDataset(torch.randn(STEPS * 32, 784), torch.randint(10, (STEPS * 32,))), batch_size=32
    )
    for anchors in ("latest", "each"):
        model, rule = Net(), EWC(100.0, anchors=anchors, samples=32)
        kept = Snapshots(rule, {2, args.tasks})
        trainer(rule, EpochBoundaries(1), kept, epochs=args.tasks).fit(model, data)
        times: dict[int, list[float]] = {2: [], args.tasks: []}
        for _ in range(args.repeats):
            for task, state in kept.states.items():
                again, watch = EWC(100.0, anchors=anchors, samples=32), StepTimes()
                again.load_state_dict(state)
                trainer(again, EpochBoundaries(9), watch, epochs=1).fit(model, data)
                times[task].append(statistics.median(watch.seconds))
        ratios = [b / a for a, b in zip(times[2], times[args.tasks], strict=True)]
        sizes = [bytes_of(kept.states[task]) for task in times]
        print(
            f"anchors={anchors}: a step in task {args.tasks} takes {statistics.median(ratios):.3f} times a "
            f"step in task 2 (spread {min(ratios):.2f}–{max(ratios):.2f}), state {sizes[0]:,} and "
            f"{sizes[1]:,} bytes"
        )


if __name__ == "__main__":
    main()
