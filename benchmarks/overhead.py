"""What a rule adds to a training step.

    python benchmarks/overhead.py [--width 1000] [--batch-size 256]

Times, in turn and many times over, a plain step of an MLP (forward, backward, Adam), one pass over its
parameters (an in-place addition of a second list of tensors), and what each rule does around the step once
a task has been consolidated; with BGD and MESU that includes drawing the weights. Then, in turn too, fits of
100 batches in a Trainer with and without DriftBoundaries. Prints medians of the ratios of each turn, lowest
and highest in brackets.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from cl_callbacks import (
    BGD,
    EWC,
    MAS,
    MESU,
    BennaFusi,
    Cascade,
    DriftBoundaries,
    KFACLaplace,
    MetaplasticGate,
    RWalk,
    StreamingConsolidation,
    SynapticCallback,
    SynapticIntelligence,
)
from cl_callbacks.functional.kronecker import Factors
from cl_callbacks.step import SynapticStep

RULES: dict[str, Callable[[], SynapticCallback]] = {
    "EWC": lambda: EWC(1.0),
    "MAS": lambda: MAS(1.0),
    "SynapticIntelligence, first task": lambda: SynapticIntelligence(1.0),
    "SynapticIntelligence": lambda: SynapticIntelligence(1.0),
    "RWalk": lambda: RWalk(1.0),
    "StreamingConsolidation, fisher": lambda: StreamingConsolidation(1.0, importance="fisher"),
    "StreamingConsolidation, path": lambda: StreamingConsolidation(1.0, importance="path"),
    "KFACLaplace": lambda: KFACLaplace(1.0),
    "BennaFusi, 2 beakers": lambda: BennaFusi(2),
    "BennaFusi, 6 beakers": lambda: BennaFusi(6),
    "MetaplasticGate": lambda: MetaplasticGate(),
    "BGD": lambda: BGD(),
    "MESU": lambda: MESU(1e5),
    "MESU, chain of 6": lambda: MESU(1e5, prior="chain", beakers=6),
    "Cascade": lambda: Cascade(),
}


class Net(LightningModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x), y)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-5)


def consolidated(rule: SynapticCallback, model: Net) -> SynapticCallback:
    """As after a task, with some importance everywhere."""
    rule._place(model)
    rule.tasks = 1
    for t in rule.synapses.view.fields.get("importance", []):
        t.fill_(1e-3)
    if isinstance(rule, BGD | MESU):
        rule._counts = [1.0]
    if isinstance(rule, KFACLaplace):
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                sizes = module.in_features + 1, module.out_features
                pair = Factors(*(1e-3 * torch.eye(size) for size in sizes))
                rule.memory.merge({f"{name}.weight": pair}, decay=1.0)
    return rule


def timed(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def fit(model: Net, x: Tensor, y: Tensor, *callbacks: Callback, batches: int = 100) -> float:
    """Seconds from the second batch to the last."""
    clock = Clock()
    trainer = Trainer(
        max_epochs=1,
        callbacks=[*callbacks, clock],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    data = TensorDataset(x.repeat(batches, 1), y.repeat(batches))
    trainer.fit(model, DataLoader(data, len(x)))
    return clock.last - clock.first


class Clock(Callback):
    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self.last = time.perf_counter()
        if trainer.global_step == 1:
            self.first = self.last


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--fits", type=int, default=9)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = Net(args.width)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    x, y = torch.randn(args.batch_size, 784), torch.randint(10, (args.batch_size,))
    others = [torch.zeros_like(p) for p in model.parameters()]
    targets = [torch.zeros_like(p) for p in model.parameters()]

    def plain() -> None:
        optimizer.zero_grad()
        model.loss(x, y).backward()
        optimizer.step()

    def around(rule: SynapticCallback) -> Callable[[], None]:
        step = SynapticStep([rule])

        def call() -> None:
            if rule.noise is not None:
                rule.noise.begin()
                rule.noise.end()
            step.about_to_step(optimizer)
            step._stepping(optimizer, (), {})
            step._stepped(optimizer, (), {})

        return call

    plain()
    rules = {name: consolidated(make(), model) for name, make in RULES.items()}
    rules["SynapticIntelligence, first task"].tasks = 0
    calls = {name: around(rule) for name, rule in rules.items()}
    for call in calls.values():
        call()
    steps: dict[str, list[float]] = {name: [] for name in calls}
    passes: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.repeats):
        step, one_pass = timed(plain), timed(lambda: torch._foreach_add_(targets, others))
        for name, call in calls.items():
            seconds = timed(call)
            steps[name].append(seconds / step)
            passes[name].append(seconds / one_pass)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"MLP of {millions:.1f} M parameters, batch {args.batch_size}, {torch.get_num_threads()} threads")
    for name in calls:
        print(f"{name:34} {shown(steps[name])} of a step, {shown(passes[name])} of one pass")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    found = [fit(model, x, y, DriftBoundaries()) / fit(model, x, y) for _ in range(args.fits)]
    print(f"{'DriftBoundaries, a fit':34} {shown(found)} of one without")


def shown(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):6.3f} ({min(ratios):.3f}–{max(ratios):.3f})"


if __name__ == "__main__":
    main()
