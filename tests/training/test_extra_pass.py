"""A pass over the training data that training does not notice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torchmetrics import MeanMetric

from cl_callbacks import EWC, BatchBoundaries, EpochBoundaries
from cl_callbacks.training.extra_pass import mean_over_task
from cl_callbacks.training.quiet import quiet, unremembered
from cl_callbacks.training.task_batches import task_batches
from tests.small import FEATURES, Net, loader, make_trainer, plain_net, task, weights


class AtBatch(Callback):
    """Does something in the middle of an epoch."""

    reads_task_data = True

    def __init__(self, action: Any) -> None:
        self.action = action

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.action(trainer, pl_module)


def chosen(data: Any, samples: int | None, seed: int = 0, **options: Any) -> list[float]:
    found: list[float] = []

    def action(trainer: Any, pl_module: Any) -> None:
        for batch in task_batches(trainer, samples, seed):
            found.extend(batch[0].flatten().tolist())

    model = Net(nn.Linear(1, 3))
    make_trainer(AtBatch(action), **options).fit(model, data)
    return found


def measured(data: Any, samples: int | None) -> list[float]:
    """What a mean over the task measures on, which cuts the last batch."""
    found: list[float] = []

    def measure(batch: Any, most: int | None) -> Any:
        rows = batch[0].flatten().tolist()[:most]
        found.extend(rows)
        return [torch.zeros(1)], len(rows), len(rows)

    def action(trainer: Any, pl_module: Any) -> None:
        mean_over_task(trainer, pl_module, measure, [torch.zeros(1)], samples=samples, what="")

    make_trainer(AtBatch(action)).fit(Net(nn.Linear(1, 3)), data)
    return found


def numbers(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(n).float().unsqueeze(1), torch.zeros(n, dtype=torch.long)


def test_everything_is_restored() -> None:
    model = Net()
    model.net[1].eval()  # one frozen BatchNorm among training layers
    model.log = own = lambda *args, **kwargs: None
    states = []

    def action(trainer: Any, pl_module: Any) -> None:
        modes = [m.training for m in pl_module.modules()]
        buffers = [b.clone() for b in pl_module.buffers()]
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
        python_state = random.getstate()
        with pytest.raises(KeyError), torch.inference_mode(), quiet(trainer, pl_module):
            assert not torch.is_inference_mode_enabled()
            assert not any(m.training for m in pl_module.modules())
            assert torch.is_grad_enabled()
            pl_module.log("nothing", 1.0)
            pl_module.log_dict({"nothing": 1.0})
            torch.rand(3), np.random.rand(3), random.random()
            for buffer in pl_module.buffers():
                buffer.add_(1)
            raise KeyError
        assert [m.training for m in pl_module.modules()] == modes
        assert all(map(torch.equal, pl_module.buffers(), buffers))
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert (np.random.get_state()[1] == numpy_state).all()
        assert random.getstate() == python_state
        assert pl_module.log is own
        assert "log_dict" not in vars(pl_module)
        states.append(True)

    make_trainer(AtBatch(action)).fit(model, loader(*task(0)))
    assert states == [True]


def test_training_around_a_pass_is_bit_identical() -> None:
    torch.manual_seed(0)
    start = Net().state_dict()
    found = []
    for passes in (False, True):

        def action(trainer: Any, pl_module: Any, passes: bool = passes) -> None:
            if passes:
                with quiet(trainer, pl_module):
                    for x, _ in task_batches(trainer, None):
                        pl_module(x).sum().backward(inputs=[x.requires_grad_()])

        model = Net()
        model.load_state_dict(start)
        torch.manual_seed(1)
        make_trainer(AtBatch(action), max_epochs=3).fit(model, loader(*task(0), shuffle=True))
        found.append(weights(model))
    assert torch.equal(*found)


def test_samples_are_chosen_once_each_and_by_seed() -> None:
    data = loader(*numbers(), batch_size=4, shuffle=True)
    assert sorted(chosen(data, None)) == list(range(12))
    some = chosen(data, 7)
    assert len(some) == len(set(some)) == 7
    assert chosen(data, 7) == some
    assert chosen(data, 7, seed=1) != some
    assert len(chosen(data, 100)) == 12


def test_samplers_of_the_user_say_what_the_task_is() -> None:
    dataset = TensorDataset(*numbers())
    subset = SubsetRandomSampler([2, 3, 5, 7])
    assert sorted(chosen(DataLoader(dataset, 2, sampler=subset), None)) == [2, 3, 5, 7]
    assert set(chosen(DataLoader(dataset, 2, sampler=subset), 3)) < {2, 3, 5, 7}
    batches = [[0, 1], [8, 9]]
    assert sorted(chosen(DataLoader(dataset, batch_sampler=batches), None)) == [0, 1, 8, 9]
    generator = torch.Generator().manual_seed(3)
    weighted = WeightedRandomSampler([0.0] * 6 + [1.0] * 6, 20, generator=generator)
    assert set(chosen(DataLoader(dataset, 2, sampler=weighted), None)) <= set(range(6, 12))


@pytest.mark.parametrize(
    ("items", "samples", "drop_last", "expected"),
    [
        (12, None, False, [4, 4, 4]),
        (13, None, False, [3, 3, 3, 4]),
        (12, 9, False, [3, 3, 3]),
        (12, 3, False, [3]),
        (12, 9, True, [4, 4, 4]),
        (12, 1, True, [4]),
        (13, None, True, [4, 4, 4]),
    ],
)
def test_batches_are_of_equal_sizes_or_full(
    items: int, samples: int | None, drop_last: bool, expected: list[int]
) -> None:
    """None has a single sample left over, of which batch statistics could not be computed."""
    sizes: list[int] = []

    def action(trainer: Any, pl_module: Any) -> None:
        sizes.extend(len(batch[0]) for batch in task_batches(trainer, samples))

    data = loader(*numbers(items), batch_size=4, shuffle=True, drop_last=drop_last)
    make_trainer(AtBatch(action)).fit(Net(nn.Linear(1, 3)), data)
    assert sizes == expected


def test_what_a_limited_epoch_does_not_reach_is_not_read() -> None:
    assert sorted(chosen(loader(*numbers(), batch_size=2), None, limit_train_batches=2)) == [0, 1, 2, 3]

    class Endless(Sampler):
        def __iter__(self) -> Iterator[int]:
            while True:
                yield 5

    endless = DataLoader(TensorDataset(*numbers()), 2, sampler=Endless())
    assert set(chosen(endless, 3, limit_train_batches=2)) == {5.0}


def test_a_sampler_with_a_generator_of_its_own_is_not_advanced() -> None:
    class Own(RandomSampler):
        pass

    found = []
    for passes in (False, True):
        generator = torch.Generator().manual_seed(3)
        dataset = TensorDataset(*numbers())
        data = DataLoader(dataset, 2, sampler=Own(dataset, generator=generator))

        def action(trainer: Any, pl_module: Any, passes: bool = passes) -> None:
            if passes:
                list(task_batches(trainer, None))

        make_trainer(AtBatch(action)).fit(Net(nn.Linear(1, 3)), data)
        found.append(generator.get_state())
    assert torch.equal(*found)


def test_other_kinds_of_training_data() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            return iter(zip(*numbers(), strict=True))

    assert measured(DataLoader(Stream(), batch_size=5), 7) == list(range(7))
    assert measured(DataLoader(Stream(), batch_size=5), None) == list(range(12))

    class Batches:
        def __iter__(self) -> Iterator[Any]:
            return iter((x.unsqueeze(0), y.unsqueeze(0)) for x, y in zip(*numbers(), strict=True))

    assert measured(Batches(), 3) == [0.0, 1.0, 2.0]
    whole = DataLoader(
        [(x.view(2, 1), y) for x, y in zip(numbers()[0].view(6, 2), torch.zeros(6, 2).long(), strict=True)],
        batch_size=None,
    )
    assert sorted(chosen(whole, None)) == list(range(12))
    assert len(measured(whole, 5)) == 5


def test_several_loaders_at_once() -> None:
    class Two(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch["a"], batch_idx)

    found: list[Any] = []

    def action(trainer: Any, pl_module: Any) -> None:
        found.extend(task_batches(trainer, 8))

    data = {"a": loader(*task(0)), "b": [loader(*task(1)), loader(*task(2))]}
    make_trainer(AtBatch(action)).fit(Two(), data)
    assert len(found) == 1
    assert set(found[0]) == {"a", "b"}
    assert [len(x) for x, _ in found[0]["b"]] == [8, 8]


def test_persistent_workers_still_see_the_whole_epoch() -> None:
    seen: list[int] = []

    class Counting(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(len(batch[0]))
            return super().training_step(batch, batch_idx)

    data = loader(*task(0), num_workers=1, persistent_workers=True)
    make_trainer(AtBatch(lambda t, m: list(task_batches(t, None))), max_epochs=2).fit(Counting(), data)
    assert sum(seen) == 48


@pytest.mark.parametrize("source", ["loader", "recent batches"])
def test_batches_go_through_the_transfer_hooks_once(source: str) -> None:
    class Shifting(Net):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] + 70, *batch[1:]]

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] + 30, *batch[1:]]

    found: list[float] = []

    def action(trainer: Any, pl_module: Any) -> None:
        for batch in task_batches(trainer, None):
            found.extend(batch[0].flatten().tolist())

    x, y = numbers()
    boundaries = [BatchBoundaries(key=2)] if source == "recent batches" else []
    data = loader(x, y, torch.zeros(12), batch_size=4)
    make_trainer(*boundaries, AtBatch(action)).fit(Shifting(nn.Linear(1, 3)), data)
    expected = range(100, 112) if source == "loader" else range(100, 108)  # two batches have passed
    assert sorted(found) == list(expected)


def test_a_buffer_that_forward_replaces_is_put_back() -> None:
    class Counting(Net):
        def __init__(self) -> None:
            super().__init__(plain_net())
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls = self.calls + 1
            return self.net(x)

    model = Counting()
    make_trainer(EWC(1.0)).fit(model, loader(*task(0)))
    assert model.calls == 3


def test_tensors_made_in_forward_have_the_precision_of_the_trainer() -> None:
    class Biased(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) + self.net(torch.ones(len(x), FEATURES))

    ewc = EWC(1.0)
    make_trainer(ewc, precision="64-true").fit(Biased(), loader(*task(0)))
    assert ewc.tasks == 1


def test_data_that_can_be_read_only_once_are_refused() -> None:
    def stream() -> Iterator[Any]:
        yield from loader(*task(0))

    with pytest.raises(TypeError, match="can be read only once"):
        make_trainer(EWC(1.0)).fit(Net(), stream())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_every_precision(precision: str) -> None:
    ewc = EWC(1.0, samples=None)
    model = Net()
    make_trainer(ewc, EpochBoundaries(1), max_epochs=2, precision=precision).fit(model, loader(*task(0)))
    expected = torch.float64 if precision == "64-true" else torch.float32
    assert ewc.tasks == 2
    for t in ewc.synapses.view["importance"]:
        assert t.dtype is expected
        assert t.isfinite().all()
    assert ewc.synapses.view["importance"][-1].sum() > 0


def test_a_metric_does_not_remember_what_it_computed_in_the_pass() -> None:
    model = Net()
    model.metric = MeanMetric()
    model.metric.update(1.0)
    assert model.metric.compute() == 1
    with unremembered(model):
        model.metric.update(5.0)
        assert model.metric.compute() == 3
    assert model.metric.compute() == 1
    assert model.metric._update_count == 1


class Keeping(Sampler):
    """Keeps its place for a resume: the epoch after `load_state_dict` begins where that was."""

    def __init__(self, samples: int) -> None:
        self.samples, self.given, self.begin = samples, 0, 0

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        self.given, self.begin = self.begin, 0
        for i in range(self.given, self.samples):
            self.given += 1
            yield i

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.begin = state_dict["given"]


class KeepingLoader(Keeping):
    """Gives batches."""

    def __iter__(self) -> Iterator[Any]:
        x, y = task(0)
        return ((x[8 * i : 8 * i + 8], y[8 * i : 8 * i + 8]) for i in super().__iter__())


@pytest.mark.parametrize("kind", ["sampler", "loader"])
def test_what_keeps_its_place_has_it_afterwards(kind: str) -> None:
    places: list[int] = []
    keeping = Keeping(24) if kind == "sampler" else KeepingLoader(3)
    data = DataLoader(TensorDataset(*task(0)), 8, sampler=keeping) if kind == "sampler" else keeping

    class Seen(Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            places.append(keeping.given)

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            places.append(keeping.given)

    trainer = make_trainer(EWC(1.0, samples=5), EpochBoundaries(1), Seen(), max_epochs=3)
    trainer.fit(Net(plain_net()), data)
    size = 8 if kind == "sampler" else 1
    assert places == 3 * [size, 2 * size, 3 * size, 3 * size]
