"""Trainings that are run on the CPU and on the pretend device, and must come to the same.

A setting is a function of a rule's name and of ``on``, which makes the Trainer; it returns all that came out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from cl_callbacks import EpochBoundaries, FitBoundaries, SynapseStatistics, TaskEvaluation
from tests.every_rule import make, state
from tests.small import Net, loader, make_trainer, plain_net, task, weights

Outcome = dict[str, Tensor]
On = Callable[..., Trainer]

SAMPLED = {"ewc each", "kfac", "kfac list"}
"""Rules that draw labels, for which a loader on the CPU would have used up other random numbers."""


def rule_of(name: str, **options: Any) -> Any:
    return make(name, **({"estimator": "exact"} if name in SAMPLED else {}), **options)


def batches(seed: int = 0, samples: int = 24) -> DataLoader:
    x, y = task(seed, samples)
    return loader(x.double(), y)


class Stream(LightningDataModule):
    """Another task in each epoch."""

    def train_dataloader(self) -> DataLoader:
        return batches(self.trainer.current_epoch)


def net() -> Net:
    torch.manual_seed(0)
    return Net(plain_net(), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))


def trainer(on: On, *callbacks: Callback, **options: Any) -> Trainer:
    """In double precision, so that rounding on the two devices does not matter."""
    return on(*callbacks, precision="64-true", reload_dataloaders_every_n_epochs=1, **options)


def outcome(model: Net, *callbacks: Any) -> Outcome:
    found = {"weights": weights(model)}
    for k, callback in enumerate(callbacks):
        found |= {f"{k}{path}": value for path, value in state(callback).items()}
    return tensors_in(found)


def one_fit(rule: str, on: On, *others: Callback, **options: Any) -> Outcome:
    memory, model = rule_of(rule, **options), net()
    trainer(on, memory, EpochBoundaries(1), *others, max_epochs=3).fit(model, Stream())
    return outcome(model, memory)


def fits_in_a_row(rule: str, on: On) -> Outcome:
    """After each of which Lightning moves the module to the CPU."""
    memory, model = rule_of(rule), net()
    ran = trainer(on, memory, FitBoundaries(carry_optimizer=True), max_epochs=1)
    for index in range(3):
        ran.fit_loop.max_epochs = index + 1
        ran.fit(model, batches(index))
    return outcome(model, memory)


def statistics_and_evaluation(rule: str, on: On, **options: Any) -> Outcome:
    class Evaluated(Net):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).double().mean())

    class Streams(Stream):
        def val_dataloader(self) -> list[DataLoader]:
            return [batches(0), batches(1)]

    memory, model = rule_of(rule, **options), net()
    model.__class__ = Evaluated
    evaluation = TaskEvaluation("val_acc")
    watching = [SynapseStatistics(every_n_steps=2), evaluation]
    trainer(on, memory, EpochBoundaries(1), *watching, max_epochs=3, val_check_interval=2).fit(
        model, Streams()
    )
    return outcome(model, memory) | {"matrix": torch.as_tensor(evaluation.matrix)}


def predictions(rule: str, on: On) -> Outcome:
    memory, model = rule_of(rule), net()
    trainer(on, memory, EpochBoundaries(1), max_epochs=1).fit(model, batches())
    return {"outputs": memory.predict_samples(model, next(iter(batches())), 3)}


class SaveInMidTask(Callback):
    """Writes a checkpoint after the second batch of the second task."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == 1 and batch_idx == 1:
            trainer.save_checkpoint(self.path)


def saved(rule: str, on: On, path: Any, **options: Any) -> Outcome:
    """What is in a checkpoint that was written in mid-task."""
    one_fit(rule, on, SaveInMidTask(path), **options)
    checkpoint = torch.load(path, weights_only=True)
    return tensors_in([checkpoint["state_dict"], list(checkpoint["callbacks"].values())])


def resumed(rule: str, first: On, then: On, path: Any, **options: Any) -> Outcome:
    """Begun in one place, and gone on with after two tasks in another."""
    memory = rule_of(rule, **options)
    begun = trainer(first, memory, EpochBoundaries(2), max_epochs=3)
    begun.fit(net(), Stream())
    begun.save_checkpoint(path)
    memory, model = rule_of(rule, **options), net()
    ran = trainer(then, memory, EpochBoundaries(2), max_epochs=5)
    ran.fit(model, Stream(), ckpt_path=path, weights_only=True)
    return outcome(model, memory)


def tensors_in(value: Any, path: str = "") -> Outcome:
    """All tensors and numbers of nested collections, flat."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: t for key, inner in items for k, t in tensors_in(inner, f"{path}/{key}").items()}
    is_number = isinstance(value, int | float | Tensor)
    return {path: torch.as_tensor(value).detach().cpu().double()} if is_number else {}


def on_the_cpu(*callbacks: Callback, **options: Any) -> Trainer:
    return make_trainer(*callbacks, **options)


def assert_alike(found: Outcome, expected: Outcome) -> None:
    """Equal to rounding, relative to the largest entry of each tensor."""
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        if value.numel():
            scale = float(value.abs().max())
            torch.testing.assert_close(
                found[path], value, rtol=0, atol=1e-9 * scale, equal_nan=True, msg=path
            )
