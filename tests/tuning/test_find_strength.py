"""What find_strength returns, and that nothing else has changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from cl_callbacks import EWC, EpochBoundaries, MetaplasticGate, StreamingConsolidation, find_strength
from tests.every_rule import make, pulling_rule, same, state
from tests.processes import Forked
from tests.small import loader, make_trainer, task
from tests.tuning.noticing import Noticing, loaders, random_numbers, sequence

FACTORS = 0.1, 1.0


def trainer_of(*callbacks: Any, **options: Any) -> Trainer:
    options = {"max_epochs": 2, "num_sanity_val_steps": 0, "reload_dataloaders_every_n_epochs": 1} | options
    return make_trainer(*callbacks, **options)


class Generated(LightningDataModule):
    """Keeps a generator, and a loader, for all its life."""

    def __init__(self) -> None:
        super().__init__()
        self.current_task, self.generator = 0, Generator().manual_seed(1)
        self.first = loader(*task(0), shuffle=True, generator=Generator().manual_seed(2))

    def train_dataloader(self) -> DataLoader:
        second = loader(*task(1), shuffle=True, generator=self.generator)
        return second if self.current_task else self.first

    def val_dataloader(self) -> list[DataLoader]:
        return loaders(2)[1]


def states_of_generators(data: Any) -> list[Tensor]:
    if isinstance(data, Generated):
        return [data.generator.get_state(), data.first.generator.get_state()]
    return [] if isinstance(data, LightningDataModule) else [each.generator.get_state() for each in data[0]]


def everything(trainer: Any, module: Noticing, data: Any, *rules: Any) -> dict[str, Any]:
    return {
        "module": module.everything(),
        "attributes": sorted(vars(module)),
        "module's Trainer": module._trainer is None,
        "rules": [state(rule) for rule in rules],
        "strengths": [rule.strength for rule in rules],
        "callbacks": list(trainer.callbacks),
        "loggers": list(trainer.loggers),
        "progress": trainer.fit_loop.state_dict(),
        "metrics": dict(trainer.callback_metrics),
        "data": dict(vars(data)) if isinstance(data, LightningDataModule) else list(data),
        "generators": states_of_generators(data),
        "state": copy.copy(vars(trainer.state)),
        "random": torch.get_rng_state(),
    }


SOURCES = {"a sequence": sequence, "a data module": Generated, "loaders": loaders}


@pytest.mark.parametrize("source", SOURCES)
def test_everything_is_as_before(source: str, tmp_path: Path) -> None:
    seed_everything(0, verbose=False)
    module, data = Noticing(), SOURCES[source]()
    logger, saving = CSVLogger(tmp_path), ModelCheckpoint(tmp_path / "saved")
    rule, other = EWC(1.0, samples=8), StreamingConsolidation(2.0)
    trainer = trainer_of(rule, MetaplasticGate(), saving, logger=logger, enable_checkpointing=True)
    before = everything(trainer, module, data, rule, other)
    found = find_strength(trainer, module, data, [rule, other], monitor="val_acc", factors=(0.1, 1.0, 10.0))
    after = everything(trainer, module, data, rule, other)
    for name, value in before.items():
        assert same(value, after[name]), name
    assert found.rules == ("ewc", "streaming_consolidation") and found.own_strengths == (1.0, 2.0)
    assert list(tmp_path.iterdir()) == []


def test_the_fit_that_follows_is_that_without() -> None:
    def train(search: bool) -> tuple[dict[str, Any], list[float]]:
        seed_everything(0, verbose=False)
        module, data, rule = Noticing(), Generated(), EWC(1.0, samples=8)
        trainer = trainer_of(rule)
        if search:
            find_strength(trainer, module, data, rule, monitor="val_acc", factors=(0.1, 1.0))
        for data.current_task in (0, 1):
            trainer.fit_loop.max_epochs = 2 * (data.current_task + 1)
            trainer.fit(module, data)
        return module.everything(), random_numbers()

    found, expected = train(True), train(False)
    assert same(found, expected)


def test_between_fits_and_after_a_validation() -> None:
    """With metrics of inference, progress, and rules that have learned."""
    module, rule, (training, validation) = Noticing(), EWC(1.0, samples=8), loaders()
    trainer = trainer_of(rule)
    trainer.fit(module, training[0], validation)
    trainer.validate(module, validation, verbose=False)
    module.accuracy.update(torch.rand(4, 3), torch.arange(4) % 3)
    before = everything(trainer, module, (training, validation), rule)
    found = find_strength(
        trainer,
        module,
        (training, validation),
        rule,
        monitor="val_acc",
        factors=(0.1, 1.0),
        epochs_per_task=1,
    )
    after = everything(trainer, module, (training, validation), rule)
    for name, value in before.items():
        assert same(value, after[name]), name
    assert len(found.average) == 2 and trainer.current_epoch == 2


@pulling_rule
def test_every_rule_that_pulls(rule: str) -> None:
    """Every training of the second task begins alike: the same strength twice gives the same scores."""
    made = make(rule)
    trainer = trainer_of(max_epochs=1)
    # So close together that rounding of float32 hides the difference.
    factors = (1.0, 1.0 + 1e-15, 1e4)
    found = find_strength(
        trainer, Noticing(), loaders(), made, monitor="val_loss", mode="min", factors=factors
    )
    assert found.old[0] == found.old[1] and found.new[0] == found.new[1]
    assert found.old[0] != found.old[2]
    assert made.tasks == 0 and not made.synapses.known


def test_it_sets_the_strength_if_asked(capsys: pytest.CaptureFixture[str]) -> None:
    rule = EWC(3.0, samples=8)
    found = find_strength(
        trainer_of(),
        Noticing(),
        loaders(),
        rule,
        monitor="val_loss",
        mode="min",
        factors=(0.5, 2.0),
        apply=True,
    )
    assert rule.strength == found.strengths[0] == 3.0 * found.factor


def test_the_length_is_that_of_the_boundary_callback() -> None:
    class Counting(Noticing):
        def on_train_end(self) -> None:
            steps.append(self.trainer.global_step)

    steps: list[int] = []
    trainer = trainer_of(EpochBoundaries(3), max_epochs=9)
    find_strength(
        trainer, Counting(), loaders(), EWC(1.0, samples=8), monitor="val_acc", factors=(1.0, 2.0), share=1.0
    )
    assert steps == [9, 18, 18]


def test_a_network_that_grows_is_as_small_as_before() -> None:
    class Growing(Noticing):
        def on_task_start(self, trainer: Trainer, pl_module: Any, task: int) -> None:
            self.add_module(f"head_{task}", torch.nn.Linear(2, 2))
            last: Any = self.net[4]
            last.bias.data = torch.cat([last.bias.data, torch.zeros(1)])
            last.weight.data = torch.cat([last.weight.data, torch.zeros(1, 8)])

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("val_loss", torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))

    module = Growing()
    before = module.everything()
    find_strength(trainer_of(), module, loaders(), EWC(1.0, samples=8), monitor="val_loss", factors=FACTORS)
    assert same(before, module.everything())
    assert not hasattr(module, "head_0")


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({"fast_dev_run": True}, loaders, "without fast_dev_run"),
        ({"strategy": Forked(), "devices": 2}, loaders, "strategy='ddp'"),
        ({}, lambda: loaders(1), "at least two tasks; got 1 and 1"),
        ({}, lambda: (loaders(3)[0], loaders(2)[1]), "at least two tasks; got 3 and 2"),
        ({"max_epochs": -1}, loaders, "give it epochs_per_task"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], data: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        find_strength(trainer_of(**options), Noticing(), data(), EWC(1.0), monitor="val_acc")


def test_a_rule_without_a_strength_is_refused() -> None:
    rule: Any = MetaplasticGate()
    with pytest.raises(ValueError, match=r"rule must be an AnchoredRule.*MetaplasticGate"):
        find_strength(trainer_of(), Noticing(), loaders(), [rule], monitor="val_acc")
