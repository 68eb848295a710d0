"""What goes wrong around a training leaves the rules, and what they have learned, in order."""

from __future__ import annotations

import copy
import itertools
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException

import cl_callbacks
from cl_callbacks import (
    EWC,
    MAS,
    MESU,
    EpochBoundaries,
    KFACLaplace,
    RWalk,
    SynapticCallback,
    SynapticIntelligence,
)
from tests.processes import Forked
from tests.rules.test_contract import RULES, assert_same, make, state
from tests.small import CLASSES, FEATURES, Net, loader, make_trainer, plain_net, task, weights

PACKAGE = str(Path(cl_callbacks.__file__).parent)
every_rule = pytest.mark.parametrize("rule", RULES)


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    """As in the foreground: a shell that runs the tests in its background has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class BreaksOffError(Exception):
    """A user's own."""


class Breaking:
    """A loader whose third batch cannot be read."""

    def __iter__(self) -> Iterator[Any]:
        for index, batch in enumerate(loader(*task(0))):
            if index == 2:
                raise BreaksOffError
            yield batch


class MeansBefore(Callback):
    """The weights before each step, which are the means of those that are drawn."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.optimizer, self.weights = trainer.optimizers[0], weights(pl_module)


def assert_let_go(model: Net, seen: MeansBefore) -> None:
    assert not seen.optimizer._optimizer_step_post_hooks
    assert {"training_step", "backward", "log", "log_dict"}.isdisjoint(vars(model))


@every_rule
def test_a_loader_that_fails_and_a_fit_that_follows(rule: str) -> None:
    model, memory, seen = Net(), make(rule), MeansBefore()
    with pytest.raises(BreaksOffError):
        make_trainer(memory, seen).fit(model, Breaking())
    assert_let_go(model, seen)
    before = weights(model)
    make_trainer(memory, seen, max_epochs=2).fit(model, loader(*task(0)))
    assert_let_go(model, seen)
    assert weights(model).isfinite().all()
    assert not torch.equal(before, weights(model))


class Interrupted(Net):
    """By Ctrl-C in its third forward pass of training, or of measuring."""

    in_evaluation = False

    def __init__(self) -> None:
        super().__init__()
        self.passes = itertools.count(1)  # goes on also where a rule restores the module's attributes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = super().forward(x)
        # What is tried before the first step does not count.
        counts = self.training != self.in_evaluation and self.trainer.global_step > 0
        if counts and next(self.passes) == 3:
            signal.raise_signal(signal.SIGINT)
        return found


@every_rule
def test_an_interrupt_in_mid_step(rule: str) -> None:
    model, memory, seen = Interrupted(), make(rule), MeansBefore()
    with pytest.raises(SystemExit):  # Lightning's way to end
        make_trainer(memory, seen).fit(model, loader(*task(0), batch_size=4))
    assert_let_go(model, seen)
    assert torch.equal(weights(model), seen.weights)
    make_trainer(memory, seen).fit(model, loader(*task(0), batch_size=4))
    assert next(model.passes) > 4


@pytest.mark.parametrize("rule", ["ewc", "mas", "kfac"])
def test_an_interrupt_while_importance_is_measured(rule: str) -> None:
    model, memory, seen = Interrupted(), make(rule), MeansBefore()
    model.in_evaluation = True
    modes: list[Any] = []

    class Before(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            modes[:] = [m.training for m in pl_module.modules()]
            self.buffers, self.random = copy.deepcopy(dict(model.named_buffers())), torch.get_rng_state()
            self.state = copy.deepcopy(state(memory))

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            self.found = torch.get_rng_state()

    before = Before()
    small = loader(*task(0), batch_size=4)
    with pytest.raises(SystemExit):
        make_trainer(before, memory, seen).fit(model, small)
    assert_let_go(model, seen)
    assert [m.training for m in model.modules()] == modes
    assert_same(dict(model.named_buffers()), before.buffers)
    assert torch.equal(before.found, before.random)
    assert_same(state(memory), before.state)
    assert memory.tasks == 0


class LineByLine(Callback):
    """Interrupts the end of the second task in one line after the other, and then lets it happen."""

    def __init__(self, rule: SynapticCallback, every: int) -> None:
        self.rule, self.every = rule, every
        self.old = self.new = 0

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 0:
            return
        before, at_start = state_and_more(self.rule), copy.deepcopy(self.rule.state_dict())
        self.interrupt(trainer, pl_module, at=0)  # some lines run at the first end of a task only
        self.rule.restore(copy.deepcopy(at_start))
        self.rule._place(pl_module)
        total = self.interrupt(trainer, pl_module, at=0)
        after = state_and_more(self.rule)
        assert not torch.equal(after["tasks"], before["tasks"])
        # All of the lines of the end, where the state is changed.
        for at in [*range(1, total - 120, self.every), *range(max(1, total - 120), total + 1)]:
            self.rule.restore(copy.deepcopy(at_start))
            self.rule._place(pl_module)
            with pytest.raises(KeyboardInterrupt):
                self.interrupt(trainer, pl_module, at)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            found = state_and_more(self.rule)
            if torch.equal(found["tasks"], before["tasks"]):
                assert_same(found, before)
                self.old += 1
            else:
                assert_same(found, after)
                self.new += 1
        self.rule.restore(copy.deepcopy(at_start))

    def interrupt(self, trainer: Any, pl_module: Any, at: int) -> int:
        lines = 0

        def trace(frame: Any, event: str, argument: Any) -> Any:
            nonlocal lines
            if not frame.f_code.co_filename.startswith(PACKAGE):
                return None
            if event == "line":
                lines += 1
                if lines == at:
                    signal.raise_signal(signal.SIGINT)
            return trace

        earlier = sys.gettrace()
        sys.settrace(trace)
        try:
            self.rule.on_task_end(trainer, pl_module, 1)
        finally:
            sys.settrace(earlier)
            # Python itself may skip the exit of a `with` that is interrupted just before it.
            torch.compiler.set_stance("default")
        return lines


def state_and_more(rule: SynapticCallback) -> dict[str, torch.Tensor]:
    return {key.lstrip("/"): value.clone() for key, value in state(rule).items()}


def interrupt_line_by_line(rule: SynapticCallback, every: int) -> LineByLine:
    interrupting = LineByLine(rule, every)
    trainer = make_trainer(interrupting, rule, EpochBoundaries(1), max_epochs=2)
    trainer.fit(Net(plain_net()), loader(*task(0, samples=8)))
    return interrupting


CONSOLIDATING = {
    "ewc": partial(EWC, 1.0, max_importance=1.0),
    "ewc, each": partial(EWC, 1.0, anchors="each"),
    "mas": partial(MAS, 1.0, decay="mean"),
    "kfac": partial(KFACLaplace, 1.0),
    "si": partial(SynapticIntelligence, 1.0, max_importance=1.0),
    "rwalk": partial(RWalk, 1.0, window_steps=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", CONSOLIDATING)
def test_an_interrupt_leaves_the_old_state_or_the_new(rule: str) -> None:
    found = interrupt_line_by_line(CONSOLIDATING[rule](), every=97)
    assert found.old > 0
    assert found.new > 0


@pytest.mark.sweep
@pytest.mark.parametrize("rule", CONSOLIDATING)
def test_an_interrupt_in_any_line_leaves_the_old_state_or_the_new(rule: str) -> None:
    assert interrupt_line_by_line(CONSOLIDATING[rule](), every=1).old > 50


def test_who_consolidates_by_hand_can_still_interrupt() -> None:
    class ByHand(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            memory.consolidate(trainer, pl_module, memory.synapses.view, 0)
            self.found = signal.getsignal(signal.SIGINT)

    memory, by_hand = SynapticIntelligence(1.0), ByHand()
    before = signal.getsignal(signal.SIGINT)
    make_trainer(by_hand, memory).fit(Net(plain_net()), loader(*task(0)))
    assert by_hand.found is before


class Dies(Callback):
    """Rank 1, at once and without a word, in mid-training or in the extra pass."""

    def __init__(self, measuring: bool) -> None:
        self.measuring = measuring

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == 1 and not self.measuring and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
        if trainer.global_rank == 1 and self.measuring:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("measuring", [pytest.param(False, marks=pytest.mark.sweep), True])
def test_a_process_that_dies_ends_the_others(measuring: bool) -> None:
    """Long before the half hour is over that a process group waits for one that hangs."""
    trainer = make_trainer(Dies(measuring), EWC(1.0), MESU(100.0), strategy=Forked(), devices=2)
    start = time.monotonic()
    with pytest.raises(ProcessExitedException, match="signal SIGKILL"):
        model = Net(nn.Linear(FEATURES, CLASSES), partial(torch.optim.SGD, lr=0.1))
        trainer.fit(model, loader(*task(0, samples=64), batch_size=4))
    assert time.monotonic() - start < 240


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: writing more fails, as it does on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WIDE = 60_000  # so that what is written is larger than what else a test run writes


@pytest.mark.parametrize("earlier", [False, True])
def test_importance_that_finds_no_room_leaves_the_earlier_file(earlier: bool, tmp_path: Path) -> None:
    rule, file = SynapticIntelligence(1.0), tmp_path / "importance.safetensors"
    make_trainer(rule).fit(Net(nn.Linear(FEATURES, WIDE)), loader(*task(0)))
    if earlier:
        rule.save_importance(file)
    before = file.read_bytes() if earlier else b""
    with full_disk(1_000_000), pytest.raises(Exception, match="File too large"):
        rule.save_importance(file)
    assert [path.name for path in tmp_path.iterdir()] == ([file.name] if earlier else [])
    assert not earlier or file.read_bytes() == before
    rule.save_importance(file)
    again = SynapticIntelligence(1.0, importance_file=file)
    assert again.tasks == 1


def test_a_checkpoint_that_finds_no_room_ends_the_fit_and_the_earlier_one_resumes(tmp_path: Path) -> None:
    class Filling(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))

    def fit(*callbacks: Callback, resumed: Path | None = None) -> tuple[Net, SynapticCallback]:
        torch.manual_seed(0)
        model, rule = Net(nn.Linear(FEATURES, WIDE)), SynapticIntelligence(1.0)
        saving = ModelCheckpoint(tmp_path, save_last=True)
        trainer = make_trainer(
            rule, EpochBoundaries(1), *callbacks, saving, max_epochs=3, enable_checkpointing=True
        )
        trainer.fit(model, loader(*task(0)), ckpt_path=resumed, weights_only=True)
        return model, rule

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match="File too large"):
            fit(Filling())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    model, rule = fit(resumed=tmp_path / "last.ckpt")
    whole, expected = fit()
    assert torch.equal(weights(model), weights(whole))
    assert_same(state(rule), state(expected))
