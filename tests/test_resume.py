"""Training that is resumed, in the middle of an epoch too, goes on as if it had never stopped.

Lightning resumes an epoch where the loader can: it keeps the `state_dict` of a loader that has one. It keeps
no random numbers, so that networks with dropout need a callback that does, with or without a rule.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cl_callbacks import (
    EWC,
    MESU,
    BatchBoundaries,
    EpochBoundaries,
    FitBoundaries,
    SynapticCallback,
    SynapticIntelligence,
)
from tests.every_rule import RECYCLING, RULES, any_rule, assert_same, make, state
from tests.resumable import Resumable
from tests.small import CLASSES, FEATURES, Net, make_trainer, task

EPOCHS, BATCHES = 4, 6


class Stopped(Exception):
    pass


class StopBefore(Callback):
    """Has the process die so many batches after the beginning."""

    def __init__(self, batches: int | None) -> None:
        self.left = batches

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.left == 0:
            raise Stopped
        self.left = None if self.left is None else self.left - 1


class RandomNumbers(Callback):
    """Goes on with torch's random numbers, as Lightning does not."""

    kept: Tensor | None = None

    def on_train_batch_start(self, *args: Any) -> None:
        if self.kept is not None:
            torch.set_rng_state(self.kept)
            self.kept = None

    def state_dict(self) -> dict[str, Any]:
        return {"numbers": torch.get_rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.kept = state_dict["numbers"]


class SaveByHand(Callback):
    """In the middle of an epoch, also of a window of accumulated gradients."""

    def __init__(self, path: Path, batch: int) -> None:
        self.path, self.left = path, batch

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.left -= 1
        if self.left == 0:
            trainer.save_checkpoint(self.path)


class DropGradients(SaveByHand):
    """Loses what a resumed Trainer has lost."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.left -= 1
        if self.left == 0:
            trainer.lightning_module.zero_grad()


Result = tuple[dict[str, Tensor], dict[str, Tensor]]


def result(trainer: Trainer, rule: SynapticCallback | None) -> Result:
    """Weights, buffers and all that optimizers know; and all that the rule knows, with its penalty."""
    found = dict(trainer.lightning_module.state_dict())
    for index, moments in trainer.optimizers[0].state_dict()["state"].items():
        found |= {f"{index}/{name}": value for name, value in moments.items()}
    if rule is None:
        return found, {}
    penalty = rule.penalty(rule.synapses.view)
    return found, state(rule) | ({} if penalty is None else {"penalty": penalty})


def normed_net() -> Net:
    """With running statistics, and no random numbers."""
    return Net(nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, CLASSES)))


Rule = Callable[[], SynapticCallback] | None


class Case:
    """A training that can be stopped and resumed, each time with everything new."""

    def __init__(
        self,
        rule: Rule,
        boundaries: Callable[[], Callback] = lambda: EpochBoundaries(2),
        net: Callable[[], Net] = normed_net,
        data: Callable[[], Any] = lambda: Resumable(TensorDataset(*task(0, samples=4 * BATCHES))),
        **options: Any,
    ) -> None:
        self.rule, self.boundaries, self.net, self.data = rule, boundaries, net, data
        self.options = {"max_epochs": EPOCHS} | options

    def run(self, *callbacks: Callback, resumed: Path | None = None, seed: int = 0, **options: Any) -> Result:
        torch.manual_seed(seed)
        model, rules = self.net(), [self.rule()] if self.rule else []
        trainer = make_trainer(*rules, self.boundaries(), *callbacks, **(self.options | options))
        trainer.fit(model, self.data(), ckpt_path=resumed, weights_only=True)
        return result(trainer, *rules or [None])

    def stop(self, folder: Path, batches: int, *callbacks: Callback) -> None:
        saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        with pytest.raises(Stopped):
            self.run(*callbacks, StopBefore(batches), saving, enable_checkpointing=True)


def assert_resumes(
    case: Case, folder: Path, *steps: int, callbacks: Callable[[], list[Callback]] = list
) -> None:
    whole = case.run(*callbacks())
    case.stop(folder, max(steps), *callbacks())
    for step in steps:
        again = case.run(*callbacks(), resumed=folder / f"step={step}.ckpt", seed=1)
        assert_same(whole[0], again[0])
        assert_same(whole[1], again[1])


AT = (9, 12, 15)
"""Steps: in the middle of a task and an epoch, at the end of both, and in the middle of the next ones."""


def test_the_plain_trainer_resumes_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """What is asked of rules, a Trainer without one can do."""
    assert_resumes(Case(None), tmp_path, *AT)


@pytest.mark.slow
@any_rule
def test_a_rule_resumes_in_the_middle_of_an_epoch(rule: str, tmp_path: Path) -> None:
    assert_resumes(Case(lambda: make(rule)), tmp_path, *AT)


@pytest.mark.sweep
@any_rule
def test_a_rule_resumes_after_any_step(rule: str, tmp_path: Path) -> None:
    assert_resumes(Case(lambda: make(rule)), tmp_path, *range(1, EPOCHS * BATCHES))


MORE: dict[str, Rule] = {
    "plain": None,
    "antithetic": lambda: MESU(100, 0.2, draws=3),
    "independent": lambda: MESU(100, 0.2, draws=3, antithetic=False, prior="chain", coupling=0.1),
    "ewc": lambda: make("ewc"),
    "rwalk": lambda: make("rwalk"),
}
more_rules = pytest.mark.parametrize("rule", MORE)


@more_rules
def test_with_dropout_a_training_resumes_whose_random_numbers_are_kept(rule: str, tmp_path: Path) -> None:
    """Lightning keeps none: without that, also the plain Trainer goes on with others."""
    case = Case(MORE[rule], net=Net)
    assert_resumes(case, tmp_path, 9, 15, callbacks=lambda: [RandomNumbers()])
    if rule == "plain":
        shutil.rmtree(tmp_path)
        with pytest.raises(AssertionError, match="weight"):
            assert_resumes(case, tmp_path, 9)


# What several draws have gathered, and how active units were, goes with the gradients, which `DropGradients`
# cannot know.
@pytest.mark.slow
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in {"mesu draws", *RECYCLING}])
@pytest.mark.parametrize("batch", [9, pytest.param(10, marks=pytest.mark.sweep)])
def test_a_window_of_accumulated_gradients_that_is_open_is_lost_and_nothing_else(
    rule: str, batch: int, tmp_path: Path
) -> None:
    """Saved by hand in the middle and at the end of a window of two batches.

    Lightning keeps no gradients: the first step after the resume is that of the window's second batch alone.
    So it is with every rule, which goes on as if just these gradients had been set to zero.
    """
    case = Case(lambda: make(rule), accumulate_grad_batches=2)
    assert_loses_the_gradients(case, tmp_path, batch)


def assert_loses_the_gradients(case: Case, folder: Path, batch: int) -> Result:
    losing = case.run(DropGradients(folder, batch))
    case.run(SaveByHand(folder / "by hand.ckpt", batch))
    again = case.run(resumed=folder / "by hand.ckpt", seed=1)
    assert_same(losing[0], again[0])
    assert_same(losing[1], again[1])
    return again


@pytest.mark.parametrize("batch", [9, 10])
def test_the_plain_trainer_loses_the_gradients_of_an_open_window(batch: int, tmp_path: Path) -> None:
    case = Case(None, accumulate_grad_batches=2)
    again, whole = assert_loses_the_gradients(case, tmp_path, batch), case.run()
    assert torch.equal(again[0]["net.0.weight"], whole[0]["net.0.weight"]) is (batch == 10)


def triples() -> Resumable:
    """Two tasks in each epoch, told apart by their batches."""
    x, y = task(0, samples=4 * BATCHES)
    numbers = torch.arange(4 * BATCHES) // (2 * BATCHES)
    return Resumable(TensorDataset(x, y, numbers), shuffle=False)


class OnTriples(EWC):
    def outputs(self, pl_module: Any, batch: Any) -> Any:
        return pl_module(batch[0]), batch[1]


@pytest.mark.parametrize("rule", [OnTriples, SynapticIntelligence])
def test_tasks_that_batches_name_go_on_in_their_middle(rule: Any, tmp_path: Path) -> None:
    """With the recent samples that their end is measured on; steps 9, 11 and 15 are within tasks."""
    case = Case(lambda: rule(20.0), lambda: BatchBoundaries(2), data=triples)
    assert_resumes(case, tmp_path, 9, 11, 15)


@pytest.mark.slow
@any_rule
def test_a_rule_and_a_network_that_have_gone_further_can_be_taken_back(rule: str, tmp_path: Path) -> None:
    """What they hold is replaced whole: nothing of the later state is left."""
    case, same, model = Case(lambda: make(rule)), make(rule), normed_net()
    whole = case.run()
    case.stop(tmp_path, 9)
    case.rule, case.net = lambda: same, lambda: model
    case.run(seed=2, max_epochs=EPOCHS - 1)
    again = case.run(resumed=tmp_path / "step=9.ckpt", seed=1)
    assert_same(whole[0], again[0])
    assert_same(whole[1], again[1])


@more_rules
def test_a_training_that_max_steps_has_stopped_goes_on(rule: str, tmp_path: Path) -> None:
    case = Case(MORE[rule])
    whole = case.run()
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    case.run(saving, enable_checkpointing=True, max_steps=10)
    again = case.run(resumed=tmp_path / "step=9.ckpt", seed=1)
    assert_same(whole[0], again[0])
    assert_same(whole[1], again[1])


@pytest.mark.parametrize("boundaries", [FitBoundaries, lambda: EpochBoundaries(2)])
def test_a_rule_that_joins_in_the_middle_of_an_epoch_begins_a_task(boundaries: Any, tmp_path: Path) -> None:
    """The checkpoint knows of no rule and no boundaries."""
    Case(None, lambda: RandomNumbers()).stop(tmp_path, 21)
    rule = make("ewc")
    Case(lambda: rule, boundaries).run(resumed=tmp_path / "step=21.ckpt")
    assert rule.tasks == 1


class OwnOrder:
    """Batches in an order that goes on from epoch to epoch, of a loader that is no DataLoader."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors, self.order, self.place = tensors, torch.arange(BATCHES), 0

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[Any]:
        if self.place in (0, BATCHES):
            self.order, self.place = self.order[torch.tensor([2, 0, 5, 1, 3, 4])], 0
        while self.place < BATCHES:
            start = 4 * int(self.order[self.place])
            self.place += 1
            yield [t[start : start + 4] for t in self.tensors]

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "place": self.place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.order, self.place = state_dict["order"], state_dict["place"]


class OwnSampler(OwnOrder):
    """The same, as the sampler of a DataLoader."""

    def __iter__(self) -> Iterator[Any]:
        return (int(index) for (batch,) in super().__iter__() for index in batch)

    def __len__(self) -> int:
        return 4 * BATCHES


@pytest.mark.parametrize("kind", ["loader", "sampler"])
def test_measuring_leaves_loaders_that_keep_their_place_where_they_are(kind: str) -> None:
    x, y = task(0, samples=4 * BATCHES)
    found = []
    for rule in (None, lambda: make("ewc", 0.0), lambda: make("ewc", 0.0, samples=9)):
        sampler = OwnSampler(torch.arange(4 * BATCHES))
        data = OwnOrder(x, y) if kind == "loader" else DataLoader(TensorDataset(x, y), 4, sampler=sampler)
        case = Case(rule, lambda: EpochBoundaries(1), data=lambda data=data: data)
        found.append(case.run()[0])
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


def test_a_rule_that_leaves_is_said(tmp_path: Path) -> None:
    Case(lambda: make("ewc")).stop(tmp_path, 9)
    with pytest.warns(UserWarning, match=r"add the following callbacks: .*EWC"):
        Case(None).run(resumed=tmp_path / "step=9.ckpt")
