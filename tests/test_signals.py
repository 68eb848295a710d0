"""Whatever is saved at any line of a training holds the means, the present weights, and whole boundaries."""

from __future__ import annotations

import copy
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.io import AsyncCheckpointIO

import cl_callbacks
from cl_callbacks import DriftBoundaries, EpochBoundaries, SynapticCallback, TaskBoundaries, WeightMerging
from cl_callbacks.training.quiet_fit import quiet_fits
from tests.every_rule import RULES, make, same
from tests.small import Net, loader, make_trainer, plain_net, task, weights

PACKAGE = str(Path(cl_callbacks.__file__).parent)


class InMemory(CheckpointIO):
    """Keeps what a checkpoint would hold at the moment of writing."""

    def __init__(self) -> None:
        self.saved: list[dict[str, Any]] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.saved.append(copy.deepcopy(checkpoint))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> Any:
        raise NotImplementedError

    def remove_checkpoint(self, path: Any) -> None:
        raise NotImplementedError


class Saving:
    """A user's handler of SIGUSR1, which saves."""

    def __init__(self) -> None:
        self.trainer: Any = None

    def __call__(self, *arguments: Any) -> None:
        self.trainer.save_checkpoint("somewhere", weights_only=False)


@pytest.fixture
def saving() -> Iterator[Saving]:
    handler = Saving()
    before = signal.signal(signal.SIGUSR1, handler)
    yield handler
    assert signal.getsignal(signal.SIGUSR1) is handler
    signal.signal(signal.SIGUSR1, before)


def content(trainer: Any) -> dict[str, Any]:
    """What a checkpoint is to hold: the weights, the rules, and which task it is."""
    rules = {c.state_key: c.state_dict() for c in trainer.callbacks if isinstance(c, SynapticCallback)}
    boundaries = next(c for c in trainer.callbacks if isinstance(c, TaskBoundaries))
    model = dict(trainer.lightning_module.named_parameters())
    found = {"weights": {name: p.detach() for name, p in model.items()}, "rules": rules}
    return copy.deepcopy(found | {"task": boundaries.task})


def content_of(checkpoint: dict[str, Any], trainer: Any) -> dict[str, Any]:
    boundaries = next(c for c in trainer.callbacks if isinstance(c, TaskBoundaries))
    states = checkpoint["callbacks"]
    rules = [c.state_key for c in trainer.callbacks if isinstance(c, SynapticCallback)]
    return {
        "weights": checkpoint["state_dict"],
        "rules": {key: states[key] for key in rules},
        "task": states[boundaries.state_key]["task"],
    }


class AtSomeLine(Callback):
    """Sends a signal at one line of the package in each batch, and at one in each end of an epoch.

    Comes first in the list; :class:`Afterwards` comes last.
    """

    def __init__(self, io: InMemory) -> None:
        self.io, self.random = io, random.Random(0)
        self.lines, self.totals = 0, {"batch": 0, "epoch": 0}
        self.sent: list[list[dict[str, Any]]] = []

    def on_train_batch_start(self, trainer: Any, *arguments: Any) -> None:
        self.begin(trainer, "batch")

    def on_train_epoch_end(self, trainer: Any, *arguments: Any) -> None:
        self.begin(trainer, "epoch")

    def begin(self, trainer: Any, what: str) -> None:
        self.whole, self.what, self.lines = [content(trainer)], what, 0
        self.at = self.random.randrange(1, max(2, self.totals[what]))
        self.saved, self.raised = len(self.io.saved), False
        sys.settrace(self.trace)

    def trace(self, frame: Any, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at and self.totals[self.what]:
                self.raised = True
                signal.raise_signal(signal.SIGUSR1)
        return self.trace

    def end(self, trainer: Any) -> None:
        sys.settrace(None)
        self.totals[self.what] = self.lines
        if self.raised:
            self.sent.append([*self.whole, content(trainer)])


class Afterwards(Callback):
    def __init__(self, sending: AtSomeLine) -> None:
        self.sending = sending

    def on_task_start(self, trainer: Any, *arguments: Any) -> None:
        if sys.gettrace() is not None:  # a task may begin with a batch, and rules renew the weights then
            self.sending.whole.append(content(trainer))

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        self.sending.end(trainer)

    def on_train_epoch_end(self, trainer: Any, *arguments: Any) -> None:
        self.sending.end(trainer)


class EverySixth(DriftBoundaries):
    """Ends a task with every sixth batch, as of the one three before it."""

    def __init__(self) -> None:
        super().__init__(min_task_batches=2, check_every_n_batches=1, snapshot_every_n_batches=1)

    def see(self, trainer: Any, batch: int, value: float) -> None:
        self._onset = max(0, batch - 2)
        if batch % 6 == 5:
            self.end(trainer, as_of=self._as_of_onset(trainer))


def assert_whole(rules: list[Any], boundaries: Any, saving: Saving, epochs: int, **options: Any) -> None:
    io = InMemory()
    sending = AtSomeLine(io)
    trainer = saving.trainer = make_trainer(
        sending, *rules, boundaries, Afterwards(sending), max_epochs=epochs, plugins=[io], **options
    )
    trainer.fit(Net(plain_net()), loader(*task(0)))
    assert len(io.saved) == len(sending.sent) > epochs
    for checkpoint, states in zip(io.saved, sending.sent, strict=True):
        assert any(same(content_of(checkpoint, trainer), state) for state in states)


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True], ids=["epochs", "late"])
@pytest.mark.parametrize("rule", RULES)
def test_a_signal_at_some_line_finds_what_is_whole(rule: str, late: bool, saving: Saving) -> None:
    assert_whole([make(rule)], EverySixth() if late else EpochBoundaries(1), saving, epochs=12)


@pytest.mark.parametrize("late", [False, True], ids=["epochs", "late"])
def test_a_signal_among_several_rules_finds_what_is_whole(late: bool, saving: Saving) -> None:
    rules = [make("si"), make("ewc"), WeightMerging(), make("mesu draws")]
    assert_whole(rules, EverySixth() if late else EpochBoundaries(1), saving, epochs=20)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["er joined", "mesu draws", "lwf", "der"])
def test_a_signal_finds_what_is_whole_where_batches_are_accumulated(rule: str, saving: Saving) -> None:
    assert_whole([make(rule)], EpochBoundaries(1), saving, epochs=14, accumulate_grad_batches=2)


HOOKS = ["on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"]


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("hook", [*HOOKS, "training_step"])
@pytest.mark.parametrize("rule", ["bgd", "mesu", "mesu draws", "ewc"])
def test_a_checkpoint_in_mid_step_holds_the_means(rule: str, hook: str, weights_only: bool) -> None:
    io, means, parts = InMemory(), [], []

    class Before(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
            means.append(copy.deepcopy(pl_module.state_dict()))

    def save(trainer: Any, pl_module: Any) -> None:
        if len(io.saved) < len(means):
            trainer.save_checkpoint("somewhere", weights_only=weights_only)
            parts.append(copy.deepcopy(pl_module.net.state_dict()))

    class Model(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if hook == "training_step":
                save(self.trainer, self)
            return loss

    user = Callback()
    if hook != "training_step":
        setattr(user, hook, lambda trainer, pl_module, *arguments: save(trainer, pl_module))
    make_trainer(user, Before(), make(rule), plugins=[io]).fit(Model(plain_net()), loader(*task(0)))
    assert len(io.saved) == 3
    for checkpoint, part, mean in zip(io.saved, parts, means, strict=True):
        assert same(checkpoint["state_dict"], mean)
        assert same({f"net.{name}": value for name, value in part.items()}, mean)


class LateWriter(InMemory):
    """Writes when the next batch has been drawn, as one in a thread may, and copies nothing before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.asked = checkpoint


def test_who_writes_later_does_not_meet_drawn_weights() -> None:
    io = LateWriter()

    class Model(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 1:
                self.mean = self.asked_at
                self.written = {k: v.clone() for k, v in io.asked["state_dict"].items()}
            return super().training_step(batch, batch_idx)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                self.asked_at = copy.deepcopy(self.state_dict())
                self.trainer.save_checkpoint("somewhere", weights_only=False)

    model = Model(plain_net())
    make_trainer(make("mesu"), plugins=[io]).fit(model, loader(*task(0)))
    assert same(model.written, model.mean)


def test_a_checkpoint_that_is_written_in_a_thread(tmp_path: Path) -> None:
    means: list[Any] = []

    class User(Callback):
        def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt", weights_only=False)

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
            means.append(copy.deepcopy(pl_module.state_dict()))

    make_trainer(User(), make("bgd"), plugins=[AsyncCheckpointIO()]).fit(Net(plain_net()), loader(*task(0)))
    for step, mean in enumerate(means):
        assert same(torch.load(tmp_path / f"{step}.ckpt", weights_only=True)["state_dict"], mean)


def test_a_checkpoint_that_is_asked_for_while_a_task_ends_is_of_after_it() -> None:
    io = InMemory()

    class User(Callback):
        def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
            trainer.save_checkpoint("somewhere", weights_only=False)
            assert len(io.saved) == task

    rules = [make("ewc"), make("si")]
    trainer = make_trainer(rules[0], User(), rules[1], EpochBoundaries(1), max_epochs=3, plugins=[io])
    trainer.fit(Net(), loader(*task(0)))
    assert "save_checkpoint" not in vars(trainer)
    found = [content_of(checkpoint, trainer) for checkpoint in io.saved]
    assert [each["task"] for each in found] == [1, 2, 3]
    tasks = [[state["tasks"] for state in each["rules"].values()] for each in found]
    assert tasks == [[1, 1], [2, 2], [3, 3]]


def test_a_checkpoint_that_is_asked_for_in_a_trial_is_of_after_it() -> None:
    io = InMemory()

    class Trying(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.before = weights(pl_module)
            with quiet_fits(trainer, pl_module), torch.no_grad():
                for parameter in pl_module.parameters():
                    parameter.zero_()
                trainer.save_checkpoint("somewhere", weights_only=True)
                assert not io.saved
            trying.found = io.saved[0]["state_dict"]

    trying, model = Trying(), Net(plain_net())
    make_trainer(trying, plugins=[io]).fit(model, loader(*task(0)))
    assert torch.equal(torch.cat([value.flatten() for value in trying.found.values()]), trying.before)


@pytest.mark.parametrize("place", ["training_step", "look back"])
def test_a_preempted_job(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's own handler, which writes a checkpoint and asks SLURM to begin the job anew."""
    queue = tmp_path / "scontrol"
    queue.write_text("#!/bin/sh\nexit 0\n")
    queue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    slurm = {"JOB_ID": "7", "NTASKS": "1", "LOCALID": "0", "NODEID": "0", "PROCID": "0"}
    for name, value in (slurm | {"JOB_NAME": "x", "JOB_NODELIST": "localhost"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    expected: list[torch.Tensor] = []

    class Model(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if place == "training_step" and self.trainer.global_step == 5:
                signal.raise_signal(signal.SIGUSR1)
            return loss

    class User(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
            if place == "training_step" and trainer.global_step == 5:
                expected.append(weights(pl_module))

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
            if place == "look back" and trainer.global_step == 6:
                expected.append(weights(pl_module))

        def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
            if place == "look back" and trainer.global_step == 6:
                assert not torch.equal(weights(pl_module), expected[0])
                signal.raise_signal(signal.SIGUSR1)

    environment = SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR1)
    trainer = make_trainer(
        User(), make("mesu"), EverySixth(), max_epochs=4, plugins=[environment], default_root_dir=tmp_path
    )
    model = Model(plain_net())
    trainer.fit(model, loader(*task(0)))
    (file,) = tmp_path.glob("hpc_ckpt_*")
    found = torch.load(file, weights_only=True)["state_dict"]
    assert torch.equal(torch.cat([found[n].flatten() for n, _ in model.named_parameters()]), expected[0])
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_training_that_is_resumed_in_mid_epoch_waits_from_its_first_batch_on(saving: Saving) -> None:
    """A handler is called in the batch, after all hooks, and not between two rules that have seen a step."""
    places: list[int] = []

    class AtTheStep(Callback):
        def on_before_optimizer_step(self, trainer: Any, *arguments: Any) -> None:
            signal.raise_signal(signal.SIGUSR1)
            places.append(len(io.saved))

    io = InMemory()
    trainer = saving.trainer = make_trainer(make("si"), AtTheStep(), plugins=[io])
    trainer.fit_loop.epoch_loop.batch_progress.current.ready = 1
    trainer.fit_loop.epoch_loop.batch_progress.current.completed = 1
    trainer.fit_loop.restarting = True
    trainer.fit_loop.epoch_loop.restarting = True
    trainer.fit(Net(plain_net()), loader(*task(0)))
    assert places == [0, 1]
