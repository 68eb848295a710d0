"""Tasks that change by themselves, at once or gradually."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from cl_callbacks import (
    EWC,
    DriftBoundaries,
    EpochBoundaries,
    FitBoundaries,
    StreamingConsolidation,
    SynapticIntelligence,
    TaskSequence,
)
from cl_callbacks.data.transition import Blend, Ramp
from tests.processes import train_together
from tests.small import CLASSES, Net, make_trainer, weights

SAMPLES, BATCH = 40, 4  # ten batches in an epoch


def sequence(tasks: int = 3, **options: Any) -> TaskSequence:
    """Pictures of which every pixel says which task it is from."""
    found = []
    for k in range(tasks):
        images = torch.full((SAMPLES, 2), float(k))
        images[:, 1] = torch.arange(SAMPLES) / SAMPLES
        data = torch.utils.data.TensorDataset(images, torch.arange(SAMPLES) % CLASSES)
        found.append({"train": data, "test": data})
    return TaskSequence(found, batch_size=BATCH, **options)


def model() -> Net:
    return Net(nn.Linear(2, CLASSES))


class Seen(Callback):
    def __init__(self) -> None:
        self.shares: list[list[float]] = []  # of each task in each batch
        self.rows: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        tasks = batch[0][:, 0]
        self.shares.append([(tasks == k).float().mean().item() for k in range(3)])
        self.rows += batch[0][:, 1].tolist()


def fit(data: TaskSequence, *callbacks: Callback, **options: Any) -> tuple[Seen, Net]:
    seed_everything(0, verbose=False)
    seen, net = Seen(), model()
    options = {"max_epochs": 6, "reload_dataloaders_every_n_epochs": 1} | options
    make_trainer(*callbacks, seen, **options).fit(net, data)
    return seen, net


def test_without_a_transition_tasks_switch_at_once() -> None:
    """Bit for bit what the sequence does that waits for declared boundaries."""
    told, by_declaration = fit(sequence(), EpochBoundaries(2), SynapticIntelligence(1.0))
    alone, by_itself = fit(
        sequence(epochs_per_task=2, transition_batches=0), EpochBoundaries(2), SynapticIntelligence(1.0)
    )
    assert told.shares == alone.shares
    assert told.rows == alone.rows
    assert torch.equal(weights(by_declaration), weights(by_itself))
    assert [share.index(1.0) for share in alone.shares] == [0] * 20 + [1] * 20 + [2] * 20


def test_neighbouring_tasks_mix_around_the_change() -> None:
    shares = torch.tensor(fit(sequence(epochs_per_task=2, transition_batches=10))[0].shares)
    # Outside of the ramps there is one task alone.
    pure = [*range(15), *range(25, 35), *range(45, 60)]
    assert (shares[pure].max(1).values == 1.0).all()
    assert shares.argmax(1)[[0, 30, 50]].tolist() == [0, 1, 2]
    assert (shares[15:25, 2] == 0).all()
    assert (shares[35:45, 0] == 0).all()
    # Within them both, the later one more and more.
    for ramp, task in ((shares[15:25, 1], 1), (shares[35:45, 2], 2)):
        assert ramp[:5].mean() < 0.5 < ramp[5:].mean(), task


def test_the_share_grows_linearly() -> None:
    later = []
    for _ in range(200):
        data = sequence(epochs_per_task=1, transition_batches=10)
        data.trainer = type("Trainer", (), {"current_epoch": 0, "callbacks": []})()  # asks for nothing else
        first = [(x[:, 0] == 1).float().mean() for x, _ in data.train_dataloader()]
        data.trainer.current_epoch = 1
        second = [(x[:, 0] == 1).float().mean() for x, _ in data.train_dataloader()]
        later.append(torch.stack(first + second))
    mean = torch.stack(later).mean(0)
    expected = torch.tensor([*[0.0] * 5, *[(k + 0.5) / 10 for k in range(10)]])
    torch.testing.assert_close(mean[:15], expected, atol=0.06, rtol=0.0)


def test_every_sample_of_the_task_is_visited_once() -> None:
    """Also by those that are replaced by a neighbour's of the same number."""
    seen, _ = fit(sequence(epochs_per_task=1, transition_batches=6), max_epochs=1)
    assert sorted(seen.rows) == sorted((torch.arange(SAMPLES) / SAMPLES).tolist())


def test_the_mixture_has_other_random_numbers_than_the_order() -> None:
    for epoch in range(2):
        data = sequence(epochs_per_task=1, transition_batches=10, shuffle_seed=3)
        data.trainer = make_trainer()
        data.trainer.fit_loop.epoch_progress.current.completed = epoch
        batches: Any = data.train_dataloader().batch_sampler
        mixture, order = batches.seed, batches.sampler.seed + batches.sampler.epoch
        assert batches.sampler.epoch == epoch
        numbers = [torch.rand(9, generator=torch.Generator().manual_seed(seed)) for seed in (mixture, order)]
        assert (numbers[0] != numbers[1]).all()


def together(rank: int, folder: Path) -> None:
    data = sequence(epochs_per_task=1, transition_batches=4, shuffle_seed=0)
    seen, _ = fit(data, max_epochs=3, strategy="ddp", devices=2)
    torch.save(seen.shares, folder / f"{rank}.pt")


def test_processes_mix_differently(tmp_path: Path) -> None:
    train_together(2, together, tmp_path)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert len(one) == len(other) == 15
    assert one[:3] == other[:3]
    assert one != other


def test_a_ramp_wider_than_an_epoch() -> None:
    ramps = [Ramp(30, since=None, until=until) for until in (2, 1)]
    found = [ramp(i, batches=10)[1] for ramp in ramps for i in range(10)]
    assert found[:5] == [0.0] * 5
    assert found[5:] == pytest.approx([(i + 0.5) / 30 for i in range(15)])


def test_data_sets_of_other_sizes_and_kinds() -> None:
    class Several(list[int]):
        def __getitems__(self, indices: list[int]) -> torch.Tensor:
            return torch.tensor([self[i] for i in indices])

    blend = Blend([Several([1, 2, 3]), None, Several([10])])
    assert len(blend) == 3
    assert blend.__getitems__([0, 6, 8, 2]).tolist() == [1, 3, 10, 10]
    assert blend[7] == 10


def test_pictures_of_two_tasks_in_one_batch() -> None:
    images, labels = torch.rand(24, 1, 4, 4), torch.arange(24) % 3
    data = TaskSequence.permuted(
        (images, labels), tasks=2, epochs_per_task=1, transition_batches=4, batch_size=5, eval_batch_size=8
    )
    data.trainer = type("Trainer", (), {"current_epoch": 0, "callbacks": []})()
    assert [x.shape[0] for x, _ in data.train_dataloader()] == [5, 5, 5, 5]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"transition_batches": 5}, ValueError, "needs epochs_per_task"),
        ({"epochs_per_task": 0}, ValueError, "epochs_per_task must be a whole number"),
        (
            {"epochs_per_task": 1, "transition_batches": -1},
            ValueError,
            "transition_batches must be a whole number",
        ),
    ],
)
def test_arguments_that_cannot_work(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        sequence(**options)


def test_a_transition_longer_than_a_task() -> None:
    with pytest.raises(ValueError, match="transition_batches=11 is longer than a task, which has 10 batches"):
        fit(sequence(epochs_per_task=1, transition_batches=11), max_epochs=3)


def test_epochs_that_are_cut_short() -> None:
    seen, _ = fit(sequence(epochs_per_task=2, transition_batches=8), limit_train_batches=6)
    shares = torch.tensor(seen.shares)
    pure = [*range(8), *range(16, 20), *range(28, 36)]
    assert (shares[pure].max(1).values == 1.0).all()
    assert 0 < shares[8:12, 1].mean() < 0.5 < shares[12:16, 1].mean() < 1


def test_one_fit_per_task_needs_no_new_loader_within_it() -> None:
    data, trainer, net = sequence(epochs_per_task=2), make_trainer(seen := Seen(), max_epochs=2), model()
    for task in range(3):
        trainer.fit(net, data)
        assert data.current_task == task
        trainer.fit_loop.max_epochs += 2
    assert [share.index(1.0) for share in seen.shares] == [0] * 20 + [1] * 20 + [2] * 20


def test_a_trainer_that_does_not_fit() -> None:
    for options in ({"epochs_per_task": 2}, {"epochs_per_task": 6, "transition_batches": 4}):
        with pytest.raises(
            MisconfigurationException, match=r"Trainer\(reload_dataloaders_every_n_epochs=1\)"
        ):
            fit(sequence(**options), reload_dataloaders_every_n_epochs=2)
    with pytest.raises(MisconfigurationException, match=r"Trainer\(max_epochs=6\)"):
        fit(sequence(epochs_per_task=2), max_epochs=7)
    with pytest.raises(MisconfigurationException, match="give it epochs_per_task"):
        fit(sequence(), DriftBoundaries())


@pytest.mark.parametrize(
    ("boundaries", "said"),
    [
        ([EpochBoundaries(3)], r"EpochBoundaries\(every_n_epochs=3\) ends tasks at other times: EWC would"),
        ([EpochBoundaries(4)], r"Use EpochBoundaries\(2\); or FitBoundaries\(\)"),
    ],
)
def test_changes_without_a_boundary_are_refused_before_the_first_step(
    boundaries: list[Callback], said: str
) -> None:
    for first_fit in (True, False):
        rule = EWC(1.0)
        rule.tasks = 0 if first_fit else 1  # with a memory it would still come too late for the next task
        with pytest.raises(MisconfigurationException, match=said):
            fit(sequence(epochs_per_task=2), rule, *boundaries)


def test_boundaries_at_every_change_or_on_purpose_are_not_refused() -> None:
    for boundaries in (EpochBoundaries(2), EpochBoundaries(1), FitBoundaries(), DriftBoundaries()):
        fit(sequence(epochs_per_task=2), EWC(1.0), boundaries)
    fit(sequence(epochs_per_task=2), StreamingConsolidation(1.0))
    fit(sequence(epochs_per_task=2))
    rule, net, data = EWC(1.0), model(), sequence(epochs_per_task=2)
    trainer = make_trainer(rule, max_epochs=2)
    for _ in range(2):  # a fit for each task
        trainer.fit(net, data)
        trainer.fit_loop.max_epochs += 2
    assert rule.tasks == 2
