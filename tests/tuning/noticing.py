"""Modules, data and fits that would notice if something had been trained before them."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import MaxMetric
from torchmetrics.classification import MulticlassAccuracy

from cl_callbacks import TaskEvaluation, TaskSequence
from tests.every_rule import same
from tests.small import CLASSES, Net, loader, make_trainer, task

TASKS, EPOCHS = 3, 2


class Noticing(Net):
    """Draws all kinds of random numbers, and remembers what it has seen in attributes of all kinds."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__(net, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
        self.accuracy, self.highest = MulticlassAccuracy(CLASSES), MaxMetric()
        self.register_buffer("batches", torch.zeros(()))
        self.mean, self.steps = torch.zeros(3), 0
        self.seen: dict[str, list[int]] = {"tasks": [], "batches": []}
        self.recent: deque[float] = deque(maxlen=5)

    def on_fit_start(self) -> None:
        self.factor = 0.1

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step((batch[0] + 1e-2 * torch.randn(6), batch[1]), batch_idx)
        noise = random.random() + np.random.random()
        self.batches += 1
        self.mean += noise
        self.highest.update(loss.detach())
        self.steps += 1
        self.seen["batches"].append(batch_idx)
        self.recent.append(loss.item())
        self.log("noise", noise)
        return loss * (1 + self.factor * noise)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        outputs = self(batch[0])
        self.accuracy(outputs, batch[1])
        self.log("val_acc", (outputs.argmax(1) == batch[1]).float().mean())
        self.log("val_loss", F.cross_entropy(outputs, batch[1]))

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        self.seen["tasks"].append(task)
        self.net[0].bias.requires_grad_(False)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)]

    def everything(self) -> dict[str, Any]:
        """All that it holds, copied."""
        metrics = [vars(self.highest)["max_value"], self.accuracy._update_count]
        attributes = [self.mean.clone(), self.steps, list(self.recent)]
        attributes += [list(each) for each in self.seen.values()]
        modes = [module.training for module in self.modules()]
        required = [p.requires_grad for p in self.parameters()]
        gradients = [p.grad is None for p in self.parameters()]
        state = {name: value.clone() for name, value in self.state_dict().items()}
        return state | {"rest": [metrics, attributes, modes, required, gradients]}


def sequence(tasks: int = TASKS, **options: Any) -> TaskSequence:
    data = [dict.fromkeys(("train", "validation"), loader(*task(k)).dataset) for k in range(tasks)]
    return TaskSequence(data, **({"batch_size": 8} | options))


def loaders(tasks: int = TASKS) -> tuple[list[DataLoader], list[DataLoader]]:
    """A training and a validation loader of each task."""
    drawing = [Generator().manual_seed(k) for k in range(tasks)]
    training = [loader(*task(k), shuffle=True, generator=drawing[k]) for k in range(tasks)]
    return training, [loader(*task(k)) for k in range(tasks)]


def random_numbers() -> list[float]:
    """What the generators draw next."""
    return [random.random(), np.random.random(), torch.rand(()).item()]


class Outcome(dict[str, Any]):
    """All that a training has left behind."""

    def __init__(self, trainer: Trainer, module: Noticing, evaluation: TaskEvaluation) -> None:
        super().__init__(
            module=module.everything(),
            optimizers=[optimizer.state_dict() for optimizer in trainer.optimizers],
            schedulers=[config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            progress=trainer.fit_loop.state_dict(),
            metrics={key: value.nan_to_num(-1.0) for key, value in trainer.callback_metrics.items()},
            matrix=evaluation.matrix.nan_to_num(-1.0),
            random=random_numbers(),
        )


def fit(
    *callbacks: Callback,
    data: TaskSequence | None = None,
    made: type[Noticing] = Noticing,
    fits: int = 1,
    **options: Any,
) -> Outcome:
    """Trains all tasks from seed 0, in one fit or one for each."""
    seed_everything(0, verbose=False)
    evaluation = TaskEvaluation(table=False)
    options = {"max_epochs": TASKS * EPOCHS // fits} | options
    trainer = make_trainer(
        *callbacks, evaluation, num_sanity_val_steps=0, reload_dataloaders_every_n_epochs=1, **options
    )
    module, data = made(), data or sequence()
    for index in range(fits):
        if index:
            trainer.fit_loop.max_epochs += TASKS * EPOCHS // fits
        trainer.fit(module, data)
    return Outcome(trainer, module, evaluation)


def assert_alike(found: Outcome, expected: Outcome) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert same(found[name], value), name
