"""The number of epochs of a task is said once; what a Trainer was not told follows."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import TensorDataset

from cl_callbacks import (
    EWC,
    DriftBoundaries,
    EpochBoundaries,
    FitBoundaries,
    TaskBoundaries,
    TaskSequence,
)
from tests.small import Net, loader, make_trainer, weights

TASKS, EPOCHS = 3, 2


def sequence(epochs_per_task: int | None = EPOCHS, tasks: int = TASKS, **options: Any) -> TaskSequence:
    """Samples that say which task they are of."""
    data = [TensorDataset(torch.full((8, 2), float(k)), torch.arange(8) % 3) for k in range(tasks)]
    return TaskSequence(
        [{"train": each, "test": each} for each in data],
        epochs_per_task=epochs_per_task, batch_size=4, **options,
    )  # fmt: skip


class Seen(Callback):
    """The task of the data in each epoch, and of the boundaries."""

    def __init__(self) -> None:
        self.data: list[int] = []
        self.declared: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.data.append(int(batch[0][0, 0]))

    def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.declared.append(task)


def fitted(data: TaskSequence, *callbacks: Callback, **options: Any) -> tuple[Any, Seen, Net]:
    seed_everything(0, verbose=False)
    trainer = make_trainer(*callbacks, seen := Seen(), **{"max_epochs": None} | options)
    net = Net(nn.Linear(2, 3))
    trainer.fit(net, data)
    return trainer, seen, net


def boundaries(trainer: Any) -> list[TaskBoundaries]:
    return [c for c in trainer.callbacks if isinstance(c, TaskBoundaries)]


@pytest.mark.parametrize("limit", [None, -1])
def test_nothing_else_is_said(limit: int | None, caplog: pytest.LogCaptureFixture) -> None:
    """The same training as where everything is said, and no word of a thousand epochs."""
    told = fitted(
        sequence(), EWC(1.0), EpochBoundaries(EPOCHS), max_epochs=6, reload_dataloaders_every_n_epochs=1
    )
    assert "TaskSequence" not in caplog.text
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*1000 epochs.*")
        trainer, seen, net = fitted(sequence(), rule := EWC(1.0), max_epochs=limit)
    assert seen.data == told[1].data == [0, 0, 1, 1, 2, 2]
    assert (seen.declared, rule.tasks, trainer.current_epoch) == ([0, 1, 2], 3, 6)
    assert torch.equal(weights(net), weights(told[2]))
    line = "TaskSequence, 3 tasks of 2 epochs: max_epochs=6, EpochBoundaries(2), reload_dataloaders_every_n_"
    assert line in caplog.text


def test_a_limit_within_the_sequence_is_said(caplog: pytest.LogCaptureFixture) -> None:
    fitted(sequence(), EWC(1.0), max_epochs=3)
    assert "max_epochs=3 ends the training in task 1" in caplog.text


def test_only_the_boundary_callback_says_it() -> None:
    for limit in (None, -1, 100):  # the sequence ends after its last task, whatever the limit
        trainer, seen, _ = fitted(sequence(None), EpochBoundaries(EPOCHS), max_epochs=limit)
        assert (seen.data, seen.declared) == ([0, 0, 1, 1, 2, 2], [0, 1, 2])
        assert trainer.max_epochs == (100 if limit == 100 else 6)


def test_another_sequence_for_the_same_trainer() -> None:
    """The limit that followed for the first was not said, and does not end the second at once."""
    for first in ({}, {"max_epochs": 3}):
        data = sequence(None)
        trainer, seen, net = fitted(data, EpochBoundaries(EPOCHS), **first)
        if first:
            assert data.current_task == 1
            trainer.fit_loop.max_epochs = -1
            trainer.fit(net, data)
        trainer.fit(net, sequence(None, tasks=2))
        assert seen.data == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1]
        assert seen.declared == [0, 1, 2, 3, 4]
        assert trainer.max_epochs == 10


def test_tasks_that_are_over() -> None:
    data = sequence()
    trainer, _, net = fitted(data)
    with pytest.raises(MisconfigurationException, match=r"all 3 are over\. Use a new Trainer"):
        trainer.fit(net, data)
    trainer, _, net = fitted(data := sequence(None), EpochBoundaries(EPOCHS))
    with pytest.raises(ValueError, match="all 3 tasks of the sequence have been trained"):
        trainer.fit(net, data)


@pytest.mark.parametrize(
    ("options", "data", "declared"),
    [
        ({"max_epochs": 4}, [0, 0, 1, 1], [0, 1]),
        ({"max_epochs": 3}, [0, 0, 1], [0]),
        ({"max_steps": 6}, [0, 0, 1], [0]),
        ({"max_steps": 1000}, [0, 0, 1, 1, 2, 2], [0, 1, 2]),
        ({"fast_dev_run": True}, [0], []),
        ({"max_time": "00:01:00:00"}, [0, 0, 1, 1, 2, 2], [0, 1, 2]),
    ],
)
def test_a_smaller_limit_holds(options: dict[str, Any], data: list[int], declared: list[int]) -> None:
    _, seen, _ = fitted(sequence(), **options)
    assert (seen.data, seen.declared) == (data, declared)


def test_a_boundary_callback_that_is_said_stays_alone() -> None:
    for said in (FitBoundaries(), DriftBoundaries(), EpochBoundaries(1), EpochBoundaries(4)):
        trainer, seen, _ = fitted(sequence(), said)
        assert boundaries(trainer) == [said]
        assert seen.data == [0, 0, 1, 1, 2, 2]
        assert trainer.max_epochs == 6


def test_without_a_number_of_epochs_nothing_follows() -> None:
    trainer, seen, _ = fitted(sequence(None), max_epochs=2)
    assert (seen.data, trainer.reload_dataloaders_every_n_epochs) == ([0, 0], 0)
    assert [type(each) for each in boundaries(trainer)] == [FitBoundaries]
    with pytest.warns(UserWarning, match="1000 epochs"):
        assert fitted(sequence(None), limit_train_batches=0)[0].max_epochs == 1000
    assert fitted(sequence(None), Timer("00:00:00:00"))[0].max_epochs == -1


def test_a_fit_for_each_task() -> None:
    data, rule = sequence(), EWC(1.0)
    trainer, seen, net = fitted(data, rule, max_epochs=2)
    for _ in range(2):
        trainer.fit_loop.max_epochs += 2
        trainer.fit(net, data)
    assert (seen.data, seen.declared, rule.tasks) == ([0, 0, 1, 1, 2, 2], [0, 1, 2], 3)


def test_a_fit_of_something_else_before() -> None:
    rule, net = EWC(1.0), Net(nn.Linear(2, 3))
    trainer = make_trainer(rule)
    trainer.fit(net, loader(torch.rand(8, 2), torch.arange(8) % 3))
    trainer.fit_loop.max_epochs = -1
    with pytest.raises(MisconfigurationException, match=r"each fit is one task: EWC .* EpochBoundaries\(2\)"):
        trainer.fit(net, sequence())


def test_a_resume_from_a_checkpoint(tmp_path: Path) -> None:
    def run(folder: str, ckpt: Path | None = None, **options: Any) -> tuple[Seen, Net]:
        saving = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        seed_everything(0, verbose=False)
        trainer = make_trainer(
            EWC(1.0), saving, seen := Seen(), enable_checkpointing=True, max_epochs=None, **options
        )
        net = Net(nn.Linear(2, 3))
        trainer.fit(net, sequence(shuffle_seed=0), ckpt_path=ckpt, weights_only=True)
        return seen, net

    whole, expected = run("whole")
    for epoch in (1, 2):  # the last of a task, and within one
        rest, net = run(f"rest{epoch}", tmp_path / "whole" / f"epoch={epoch}.ckpt")
        assert rest.data == whole.data[epoch + 1 :]
        assert torch.equal(weights(net), weights(expected))


def test_evaluation_sets_nothing() -> None:
    class Tested(Net):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    trainer = make_trainer(max_epochs=None)
    trainer.test(Tested(nn.Linear(2, 3)), sequence(), verbose=False)
    assert (trainer.max_epochs, trainer.reload_dataloaders_every_n_epochs, boundaries(trainer)) == (
        None,
        0,
        [],
    )


def test_a_module_that_brings_its_boundaries() -> None:
    class Bringing(Net):
        def configure_callbacks(self) -> Callback:
            return said

    said = EpochBoundaries(EPOCHS)
    trainer = make_trainer(seen := Seen(), max_epochs=None)
    trainer.fit(Bringing(nn.Linear(2, 3)), sequence())
    assert (seen.data, seen.declared, boundaries(trainer)) == ([0, 0, 1, 1, 2, 2], [0, 1, 2], [said])
