"""What comes back from fits that start processes: a Trainer for each task, with the same callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Sampler, TensorDataset

from cl_callbacks import (
    EWC,
    DriftBoundaries,
    EpochBoundaries,
    KFACLaplace,
    StrengthFinder,
    SynapticIntelligence,
    TaskEvaluation,
    TaskSequence,
)
from tests.every_rule import state
from tests.processes import Forked
from tests.small import Net, loader, make_trainer, plain_net, task, weights

VALIDATION = [loader(*task(k, samples=64), batch_size=32) for k in range(2)]

# Lightning refuses a second fit of a Trainer that starts processes.
STARTED: dict[str, Callable[[], Any]] = {
    "forkserver": Forked,  # as `ddp_spawn`
    "fork": lambda: DDPStrategy(start_method="fork"),  # as `ddp_notebook`
}


class Scored(Net):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        score = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("val_acc", score, sync_dist=True)


def descent(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def model() -> Scored:
    torch.manual_seed(0)
    return Scored(plain_net(), optimizer=descent)


class Dealt(Sampler[int]):
    """To each process samples in turn, so that batches of several make up one of a single process."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def _own(self) -> range:
        return (
            range(dist.get_rank(), self.samples, dist.get_world_size())
            if dist.is_initialized()
            else range(self.samples)
        )

    def __len__(self) -> int:
        return len(self._own())

    def __iter__(self) -> Iterator[int]:
        return iter(self._own())


def dealt(number: int, start: str | None) -> DataLoader:
    data = TensorDataset(*task(number))
    return DataLoader(data, 8 if start is None else 4, sampler=Dealt(len(data)))


def train(net: Any, data: Any, *callbacks: Any, start: str | None, **options: Any) -> Trainer:
    processes: dict[str, Any] = (
        {"devices": 1} if start is None else {"devices": 2, "strategy": STARTED[start]()}
    )
    trainer = make_trainer(*callbacks, use_distributed_sampler=False, **processes | options)
    if isinstance(data, LightningDataModule):
        trainer.fit(net, datamodule=data)
    else:
        trainer.fit(net, data, VALIDATION)
    return trainer


def two_tasks(start: str | None) -> tuple[Scored, list[Any]]:
    rules = [EWC(30.0), KFACLaplace(1.0, estimator="exact"), SynapticIntelligence(1.0)]
    callbacks, net = [*rules, TaskEvaluation(table=False)], model()
    for index in range(2):
        train(net, dealt(index, start), *callbacks, start=start)
    return net, callbacks


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTED)
def test_a_memory_comes_back_and_goes_on(start: str, tmp_path: Path) -> None:
    net, callbacks = two_tasks(start)
    plain, expected = two_tasks(None)
    torch.testing.assert_close(weights(net), weights(plain), rtol=1e-4, atol=1e-5)
    for rule, twin in zip(callbacks[:3], expected[:3], strict=True):
        assert (rule.tasks, rule.next_task) == (2, 2)
        for name, value in state(twin).items():
            torch.testing.assert_close(state(rule)[name], value, rtol=1e-3, atol=1e-5)
    evaluation = callbacks[3]
    assert len(evaluation.record.ends) == 2
    assert evaluation.matrix.flatten().tolist() == pytest.approx(expected[3].matrix.flatten().tolist())
    callbacks[0].save_importance(tmp_path / "importance.safetensors")
    assert EWC(1.0, importance_file=tmp_path / "importance.safetensors").tasks == 2


@pytest.mark.slow
def test_a_data_module_goes_on_with_the_next_task() -> None:
    tasks = [dict.fromkeys(("train", "validation"), loader(*task(k)).dataset) for k in range(3)]
    data, rule, boundaries = TaskSequence(tasks, batch_size=4), EWC(1.0), EpochBoundaries(1)
    options: dict[str, Any] = {"max_epochs": 1, "reload_dataloaders_every_n_epochs": 1}
    for _ in range(2):
        train(model(), data, rule, boundaries, start="forkserver", **options)
    assert (data.current_task, boundaries.task, rule.tasks) == (2, 2, 2)


@pytest.mark.slow
def test_a_strength_that_was_found_comes_back() -> None:
    tasks = [dict.fromkeys(("train", "validation"), loader(*task(k)).dataset) for k in range(2)]
    data = TaskSequence(tasks, batch_size=4, epochs_per_task=1)
    rule, finder = EWC(1.0), StrengthFinder("val_acc", factors=(10.0, 100.0))
    options: dict[str, Any] = {"max_epochs": 2, "reload_dataloaders_every_n_epochs": 1}
    train(model(), data, rule, EpochBoundaries(1), finder, start="forkserver", **options)
    assert finder.result is not None
    assert rule.strength == finder.result.strengths[0]
    assert rule.strength in (10.0, 100.0)


class Recent(Callback):
    """The samples that a process holds when a fit starts."""

    reads_task_data = True

    def __init__(self, boundaries: DriftBoundaries, folder: Path) -> None:
        self.boundaries, self.folder = boundaries, folder

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        held = [batch[0] for batch in self.boundaries.recent_batches]
        torch.save(held, self.folder / f"{trainer.global_rank}.pt")


@pytest.mark.slow
def test_each_process_gets_its_own_samples_back(tmp_path: Path) -> None:
    """Of a stream whose task goes on in the next Trainer."""
    boundaries, net = DriftBoundaries(), model()
    for _ in range(2):
        train(net, dealt(0, "forkserver"), boundaries, Recent(boundaries, tmp_path), start="forkserver")
    for rank in range(2):
        held = torch.cat(torch.load(tmp_path / f"{rank}.pt"))
        assert torch.equal(held, task(0)[0][rank::2])
    assert boundaries.task_is_open


def test_a_fit_without_processes_is_as_before() -> None:
    rule = EWC(1.0)
    train(model(), loader(*task(0)), rule, start=None)
    assert rule.tasks == 1
