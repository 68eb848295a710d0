"""A callback that keeps state serves one Trainer at a time, and any number one after another."""

from __future__ import annotations

import copy
import gc
import pickle
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cl_callbacks import (
    EWC,
    BatchBoundaries,
    EpochBoundaries,
    RetentionGuard,
    StrengthFinder,
    SynapseStatistics,
    TaskEvaluation,
)
from cl_callbacks.guards.waiting_signals import guard_signals, release_signals
from cl_callbacks.training.one_trainer import OfOneTrainer
from tests.every_rule import RULES, make, same
from tests.small import Net, fit_tasks, loader, make_trainer, plain_net, task, weights

OTHERS: dict[str, Callable[[], OfOneTrainer]] = {
    "boundaries": lambda: EpochBoundaries(1),
    "boundaries of batches": lambda: BatchBoundaries("task"),
    "evaluation": lambda: TaskEvaluation("val_acc"),
    "statistics": lambda: SynapseStatistics(every_n_steps=1),
    "finder": lambda: StrengthFinder("val_acc"),
    "guard": lambda: RetentionGuard("val_acc", "max", 0.1),
}


@pytest.mark.parametrize("kind", [EWC, TaskEvaluation, EpochBoundaries])
def test_a_class_is_no_callback(kind: Any) -> None:
    said = f"^callbacks has the class {kind.__name__} and not an object of it: write {kind.__name__}\\(\\)"
    with pytest.raises(MisconfigurationException, match=said):
        make_trainer(kind, max_epochs=1).fit(a_net(), loader(*task(0)))


class AtBatch(Callback):
    """Does something once, in the middle of a task."""

    def __init__(self, action: Callable[[], None], batch: int = 4) -> None:
        self.action, self.batch = action, batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.batch:
            self.batch = -1
            self.action()


def a_net() -> Net:
    torch.manual_seed(5)
    return Net(plain_net())


def trained(rule: Any, action: Callable[[], None]) -> tuple[Tensor, dict[str, Any]]:
    """Weights and state after two tasks, in the second of which something is done."""
    model = a_net()
    fit_tasks(model, AtBatch(action), rule)
    return weights(model), copy.deepcopy(rule.state_dict())


def refused(*callbacks: Callback, model: LightningModule | None = None) -> None:
    with pytest.raises(MisconfigurationException, match=r"by another Trainer .* make one \w+ for each"):
        make_trainer(*callbacks).fit(model or a_net(), loader(*task(3)))


@pytest.mark.parametrize("rule", RULES)
def test_a_fit_within_a_fit_is_refused_and_the_outer_one_does_not_notice(rule: str) -> None:
    inner = EWC(name="of the inner")
    expected = trained(make(rule), lambda: None)
    shared = make(rule)
    found = trained(shared, lambda: refused(inner, shared))
    assert torch.equal(found[0], expected[0])
    assert same(found[1], expected[1])
    assert not same(found[1], make(rule).state_dict())


@pytest.mark.parametrize("other", OTHERS)
def test_so_is_any_other_callback_that_keeps_state(other: str) -> None:
    shared = OTHERS[other]()
    trainer = make_trainer(shared, AtStart(lambda: refused(shared)))
    with pytest.raises(Done):
        trainer.fit(a_net(), loader(*task(0)))


class Done(Exception):
    """Ends a fit."""


class AtStart(Callback):
    """Does something when all callbacks are set up, and ends the fit."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.action()
        raise Done


def test_the_sentence_names_the_callback() -> None:
    rule = EWC(name="mine")
    sentences = []

    def action() -> None:
        with pytest.raises(MisconfigurationException) as error:
            make_trainer(rule).fit(a_net(), loader(*task(0)))
        sentences.append(str(error.value))

    trained(rule, action)
    assert sentences == [
        "EWC 'mine' is in use by another Trainer that has not ended, in a fit around this one or in another "
        "thread, and its state belongs to that training: make one EWC for each Trainer."
    ]


def test_a_second_thread_is_refused_and_the_first_does_not_notice() -> None:
    expected = trained(EWC(), lambda: None)
    rule, errors = EWC(), []

    def of_second_thread() -> None:
        try:
            refused(rule)
        except BaseException as error:
            errors.append(error)

    def action() -> None:
        thread = threading.Thread(target=of_second_thread)
        thread.start()
        thread.join()

    found = trained(rule, action)
    assert not errors
    assert torch.equal(found[0], expected[0])
    assert same(found[1], expected[1])


def test_a_validation_by_another_trainer_within_a_fit_is_refused_too() -> None:
    expected = trained(EWC(), lambda: None)
    rule = EWC()

    class Validated(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def action() -> None:
        with pytest.raises(MisconfigurationException, match="in use by another Trainer"):
            make_trainer(rule).validate(Validated(), loader(*task(0)), verbose=False)

    found = trained(rule, action)
    assert torch.equal(found[0], expected[0])
    assert same(found[1], expected[1])


def test_a_module_that_is_shared_too_stays_with_the_first_trainer() -> None:
    expected = trained(EWC(), lambda: None)
    rule, model = EWC(), a_net()
    fit_tasks(model, AtBatch(lambda: refused(rule, model=model)), rule)
    assert torch.equal(weights(model), expected[0])


def test_a_copy_may_train_within_the_fit() -> None:
    rule, states = EWC(), []

    def action() -> None:
        for another in (copy.deepcopy(EWC(5.0)), pickle.loads(pickle.dumps(EWC(5.0))), copy.deepcopy(rule)):
            make_trainer(another).fit(a_net(), loader(*task(3)))
            states.append(another.tasks)

    trained(rule, action)
    assert states == [1, 1, 2]
    assert rule.tasks == 2


class Failing(Callback):
    """Ends a fit in the way that is asked for."""

    def __init__(self, error: BaseException, also_at_the_end: bool = False) -> None:
        self.error, self.also_at_the_end = error, also_at_the_end

    def on_train_batch_end(self, *args: Any) -> None:
        raise self.error

    def on_exception(self, *args: Any) -> None:
        if self.also_at_the_end:
            raise RuntimeError("so the callbacks behind it do not hear of the exception")


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit()])
@pytest.mark.parametrize("also_at_the_end", [False, True])
def test_after_a_fit_that_was_broken_off_another_trainer_may_have_it(
    error: BaseException, also_at_the_end: bool
) -> None:
    rule = EWC()
    with pytest.raises((type(error), SystemExit, RuntimeError)):
        make_trainer(Failing(error, also_at_the_end), rule).fit(a_net(), loader(*task(0)))
    make_trainer(rule).fit(a_net(), loader(*task(0)))
    assert rule.tasks == 1
    assert signals_are_handled()


def signals_are_handled() -> bool:
    """Whether handlers that take part in sections are called at once."""
    called: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: called.append(number))
    gated = guard_signals()
    signal.raise_signal(signal.SIGUSR1)
    release_signals(gated)
    signal.signal(signal.SIGUSR1, before)
    return called == [signal.SIGUSR1]


def test_after_a_trainer_that_is_gone_and_one_that_was_refused_another_may_have_it() -> None:
    rule, refusing = EWC(name="a"), EWC(name="b")
    trainer: Any = make_trainer(rule)
    trainer.fit(a_net(), loader(*task(0)))
    del trainer
    gc.collect()
    trained(refusing, lambda: refused(rule, refusing))  # the rule is the refused Trainer's, which has ended
    trainer = make_trainer(rule)
    trainer.fit(a_net(), loader(*task(1)))
    trainer.fit_loop.max_epochs += 1
    trainer.fit(a_net(), loader(*task(2)))
    assert rule.tasks == 3


class Unlinked(EWC):
    """Overrides hooks as people do, without a call of super."""

    ended = 0

    def on_exception(self, *args: Any) -> None:
        self.ended += 1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.begun = True


class Mixin:
    """Is no callback."""

    stopped = 0

    def teardown(self, *args: Any, **options: Any) -> None:
        self.stopped += 1


class Mixed(Mixin, EpochBoundaries):
    """Takes a hook from a class that is no callback."""


def test_hooks_of_a_subclass_that_call_no_super_are_not_called_for_a_refused_trainer() -> None:
    rule, boundaries = Unlinked(), Mixed(1)
    trainer = make_trainer(
        rule, boundaries, AtBatch(lambda: refused(rule), 1), AtBatch(lambda: refused(boundaries), 1)
    )
    trainer.fit(a_net(), loader(*task(0)))
    assert rule.begun
    assert rule.ended == 0
    assert boundaries.stopped == 1
