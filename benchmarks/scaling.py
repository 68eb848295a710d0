"""What the number of tasks costs, and what the number of parameters.

    python benchmarks/scaling.py --json FILE
    python benchmarks/scaling.py --tasks 1 10 --parameters 1e6 1e9

First, one Trainer learns many short tasks with a rule, and the state after the first, the tenth and so on is
kept. Then steps with each of these states are timed in turn, since a machine's speed varies over a run.
Second, steps of networks of more and more parameters, with EWC after a task and without it, in turn.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from networks import Classifier, mlp
from timing import bytes_of, quiet_trainer, step_seconds
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cl_callbacks import EWC, EpochBoundaries, KFACLaplace, RWalk, SynapticCallback, SynapticIntelligence

STEPS = 5  # of each task
RULES: dict[str, Callable[[], SynapticCallback]] = {
    "EWC, anchors=latest": lambda: EWC(1.0, estimator="sampled", samples=32),
    "EWC, anchors=each": lambda: EWC(1.0, anchors="each", estimator="sampled", samples=32),
    "SynapticIntelligence": lambda: SynapticIntelligence(1.0),
    "RWalk": lambda: RWalk(1.0),
    "KFACLaplace": lambda: KFACLaplace(1.0, estimator="sampled", samples=32),
}


class States(Callback):
    """Keeps the rule's state as it was after some numbers of tasks."""

    def __init__(self, rule: SynapticCallback, tasks: list[int]) -> None:
        self.rule, self.tasks = rule, tasks
        self.found: dict[int, dict[str, Any]] = {}

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        if task + 1 in self.tasks:
            self.found[task + 1] = copy.deepcopy(self.rule.state_dict())


class Chain(nn.Sequential):
    """Square layers, as many as make about so many parameters."""

    def __init__(self, parameters: float) -> None:
        self.width = min(4096, int((parameters / 4) ** 0.5))
        layers = max(1, round(parameters / self.width**2))
        super().__init__(*(nn.Linear(self.width, self.width, bias=False) for _ in range(layers)))


class Plain(Classifier):
    """Trained by plain SGD, which keeps nothing."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def many_tasks(tasks: list[int], repeats: int) -> list[dict[str, Any]]:
    data = DataLoader(
        TensorDataset(torch.randn(STEPS * 32, 784), torch.randint(10, (STEPS * 32,))), batch_size=32
    )
    rows = []
    for name, make in RULES.items():
        torch.manual_seed(0)
        rule = make()
        states = States(rule, tasks)
        quiet_trainer(rule, EpochBoundaries(1), states, max_epochs=tasks[-1]).fit(Classifier(mlp(400)), data)
        model = Classifier(mlp(400))
        seconds: dict[int, list[float]] = {task: [] for task in tasks}
        for _ in range(repeats):
            for task, state in states.found.items():
                again = make()
                again.load_state_dict(state)
                seconds[task].append(step_seconds(model, data, again, EpochBoundaries(9)))
        for task in tasks:
            ratios = [b / a for a, b in zip(seconds[tasks[0]], seconds[task], strict=True)]
            size = bytes_of(states.found[task])
            print(f"{name:24} {task:6} tasks: step {spread(ratios)}, state {size:,} bytes", flush=True)
            rows.append({"rule": name, "tasks": task, "step": statistics.median(ratios), "state_bytes": size})
    return rows


def many_parameters(counts: list[float], repeats: int) -> list[dict[str, Any]]:
    rows = []
    for count in counts:
        torch.manual_seed(0)
        net = Chain(count)
        data = DataLoader(TensorDataset(torch.randn(4, net.width), torch.zeros(4).long()), batch_size=1)
        model, rule = Plain(net), EWC(1.0, estimator="sampled", samples=1)
        parameters = sum(p.numel() for p in model.parameters())
        step_seconds(model, data, rule, EpochBoundaries(1))
        plain, ratios, extra = [step_seconds(model, data)], [], []
        for _ in range(repeats):
            with_it = step_seconds(model, data, rule, EpochBoundaries(9))
            plain.append(step_seconds(model, data))
            ratios.append(with_it / statistics.mean(plain[-2:]))
            extra.append(1e9 * (with_it - statistics.mean(plain[-2:])) / parameters)
        size = bytes_of(rule.state_dict()) / parameters
        print(
            f"{parameters / 1e6:8.1f} M parameters: step {spread(ratios)} of plain SGD's, "
            f"{statistics.median(extra):.2f} ns and {size:.1f} bytes of state for each",
            flush=True,
        )
        rows.append(
            {
                "parameters": parameters,
                "step": statistics.median(ratios),
                "extra_ns_per_parameter": statistics.median(extra),
                "bytes_per_parameter": size,
            }
        )
    return rows


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.2f}–{max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, nargs="*", default=[1, 10, 100, 1000])
    parser.add_argument("--parameters", type=float, nargs="*", default=[1e6, 1e7, 1e8, 3e8])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    tasks = many_tasks(sorted(args.tasks), args.repeats) if args.tasks else []
    sizes = many_parameters(args.parameters, args.repeats)
    if args.json:
        args.json.write_text(json.dumps({"tasks": tasks, "parameters": sizes}, indent=1))


if __name__ == "__main__":
    main()
