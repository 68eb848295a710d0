"""What is done after everything else in a fit, and who may change weights there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LambdaCallback,
    ModelCheckpoint,
    StochasticWeightAveraging,
    TQDMProgressBar,
)

from cl_callbacks import EWC, TaskEvaluation
from cl_callbacks.training.fit_end import after_training, same_weights, weight_norms, weights_may_change
from tests.small import Net, loader, make_trainer, plain_net, task


class OwnEnd(Callback):
    def on_train_end(self, trainer: Any, pl_module: Any) -> None: ...


class Derived(ModelCheckpoint):
    """Has no end of its own."""


class EndingModule(Net):
    def on_train_end(self) -> None: ...


def attached(*callbacks: Callback, module: type[Net] = Net) -> Any:
    trainer = make_trainer(*callbacks, fast_dev_run=True)
    trainer.fit(module(), loader(*task(0)))
    return trainer


@pytest.mark.parametrize(
    "callback",
    [
        OwnEnd(),
        EMAWeightAveraging(),
        StochasticWeightAveraging(0.1),
        LambdaCallback(on_train_end=lambda t, m: None),
    ],
    ids=lambda c: type(c).__name__,
)
def test_who_may_change_weights(callback: Callback) -> None:
    assert weights_may_change(attached(callback))


def test_who_may_not() -> None:
    harmless = [Derived(), EarlyStopping("train_loss"), EWC(1.0), TQDMProgressBar(), TaskEvaluation()]
    trainer = attached()
    assert not weights_may_change(trainer)
    trainer.callbacks = harmless
    assert not weights_may_change(trainer)
    assert weights_may_change(attached(module=EndingModule))


def test_work_is_done_after_everybody_in_its_order() -> None:
    said: list[str] = []

    class Asking(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            said.append(f"{self.name} ends")
            after_training(trainer, lambda: said.append(self.name))

    class Module(Net):
        def on_train_end(self) -> None:
            said.append("module ends")

    trainer, module = make_trainer(Asking("a"), Asking("b")), Module()
    for epochs in (1, 2):
        trainer.fit_loop.max_epochs = epochs
        trainer.fit(module, loader(*task(0)))
        assert said == ["a ends", "b ends", "module ends", "a", "b"]
        said.clear()


def test_work_that_an_exception_prevents_is_not_done_in_the_next_fit() -> None:
    said: list[str] = []

    class Failing(Net):
        fails = True

        def on_train_end(self) -> None:
            if self.fails:
                raise RuntimeError("the disk is full")

    class Asking(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            after_training(trainer, lambda: said.append("done"))

    module, trainer = Failing(), make_trainer(EWC(1.0), Asking())
    with pytest.raises(RuntimeError, match="the disk is full"):
        trainer.fit(module, loader(*task(0)))
    assert not said
    module.fails, trainer.fit_loop.max_epochs = False, 2
    trainer.fit(module, loader(*task(0)))
    assert said == ["done"]


def test_norms_tell_changes_apart_from_rounding() -> None:
    module = Net(plain_net())
    before = weight_norms(module)
    assert same_weights(before, weight_norms(module)) == 1.0
    with torch.no_grad():
        module.net[0].bias.mul_(1 + 1e-8)
        assert same_weights(before, weight_norms(module)) == 1.0
        module.net[0].bias.add_(1e-3)
    assert same_weights(before, weight_norms(module)) == pytest.approx(3 / 4)
    module.net[0].requires_grad_(False)
    assert weight_norms(module).keys() == {"net.2.weight", "net.2.bias"}
