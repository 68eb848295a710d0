"""Two gloo processes against one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from torch import nn
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils.data import DataLoader, Sampler, TensorDataset

from cl_callbacks import (
    BGD,
    EWC,
    MAS,
    MESU,
    BatchBoundaries,
    BennaFusi,
    Cascade,
    ContinualBackprop,
    DriftBoundaries,
    EpochBoundaries,
    FitBoundaries,
    KFACLaplace,
    ReDo,
    RWalk,
    StreamingConsolidation,
    SynapticCallback,
    SynapticIntelligence,
    TaskSequence,
)
from tests.drift.traces import noisy
from tests.every_rule import same
from tests.processes import Forked
from tests.small import CLASSES, FEATURES, Net, loader, make_trainer, task


class Report(Callback):
    """What each rank has at the end, and on how many samples it measured."""

    def __init__(self, rules: list[SynapticCallback], folder: Path) -> None:
        self.rules, self.folder = rules, folder

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        states = [rule.state_dict() for rule in self.rules]
        torch.save(
            {"states": states, "weights": pl_module.state_dict()}, self.folder / f"{trainer.global_rank}.pt"
        )


def train(folder: Path, lr: float, **options: Any) -> list[dict[str, Any]]:
    folder.mkdir()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(FEATURES, 8), nn.LayerNorm(8), nn.Linear(8, CLASSES))
    model = Net(net, partial(torch.optim.SGD, lr=lr))
    rules: list[SynapticCallback] = [
        EWC(1.0, samples=None, name="all"),
        EWC(1.0, samples=7, anchors="each", name="some"),
        MAS(1.0, samples=None),
        KFACLaplace(1.0, estimator="exact", samples=None),
        EWC(1.0, estimator="sampled", samples=6, name="sampled"),
        SynapticIntelligence(1.0),
        RWalk(1.0, window_steps=2),
        StreamingConsolidation(1.0),
        # Of a single sample one of the processes has none.
        EWC(1.0, samples=1, name="one"),
        MAS(1.0, samples=1, name="one"),
        KFACLaplace(1.0, estimator="exact", samples=1, name="one"),
    ]
    trainer = make_trainer(
        *rules,
        EpochBoundaries(1),
        Report(rules, folder),
        max_epochs=2,
        use_distributed_sampler=True,
        **options,
    )
    trainer.fit(model, loader(*task(0, samples=25), batch_size=4, shuffle=True))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(options["devices"])]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[float, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ddp")
    return {lr: train(folder / str(lr), lr, strategy=Forked(), devices=2) for lr in (0.0, 0.1)}


def test_state_is_bit_identical_on_both_ranks(two: dict[float, list[dict[str, Any]]]) -> None:
    first, second = two[0.1]
    assert [state["tasks"] for state in first["states"]] == [2] * 7 + [0] + [2] * 3
    assert same(first["states"], second["states"])
    assert same(dict(first["weights"]), dict(second["weights"]))


def test_two_processes_measure_what_one_does(two: dict[float, list[dict[str, Any]]], tmp_path: Path) -> None:
    """With weights at rest; neither 25 nor 7 samples nor a single one divide by two."""
    (one,) = train(tmp_path / "one", 0.0, devices=1)
    for rule in (0, 1, 2, 3, 8, 9, 10):
        found, expected = (run["states"][rule] for run in (two[0.0][0], one))
        torch.testing.assert_close(
            found["synapses"]["importance"], expected["synapses"]["importance"], rtol=1e-5, atol=1e-8
        )
        torch.testing.assert_close(found.get("factors"), expected.get("factors"), rtol=1e-5, atol=1e-8)
    assert sum(map(len, expected["factors"].values())) == 4


def by_number(folder: Path, numbers: list[int]) -> list[dict[str, Any]]:
    """Two processes, of which one sees the even samples in order and the other the odd ones."""
    folder.mkdir()
    x, y = task(0, samples=len(numbers))
    rule = OnTriples(1.0)
    trainer = make_trainer(
        rule,
        BatchBoundaries(key=2),
        Report([rule], folder),
        strategy=Forked(),
        devices=2,
        use_distributed_sampler=False,
    )
    model = Net(nn.Linear(FEATURES, CLASSES), partial(torch.optim.SGD, lr=0.1))
    data = DataLoader(TensorDataset(x, y, torch.tensor(numbers)), 3, sampler=EvenOrOdd(len(numbers)))
    trainer.fit(model, data)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


class OnTriples(EWC):
    def outputs(self, pl_module: Any, batch: Any) -> Any:
        return pl_module(batch[0]), batch[1]


class EvenOrOdd(Sampler[int]):
    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples // 2

    def __iter__(self) -> Iterator[int]:
        return iter(range(dist.get_rank(), self.samples, 2))


def test_tasks_named_by_batches_end_together_or_not_at_all(tmp_path: Path) -> None:
    first, second = by_number(tmp_path / "together", [0] * 12 + [1] * 12)
    assert first["states"][0]["tasks"] >= 1
    assert same(first["states"], second["states"])
    # From the first batch on, and in one that is new to one process only.
    for name, apart in (("apart", [0, 1] * 12), ("earlier", [0] * 12 + [1, 0] * 3 + [1] * 6)):
        with pytest.raises(ProcessRaisedException, match="different tasks at the same batch"):
            by_number(tmp_path / name, apart)


class Summing(Net):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1], reduction="sum")


def metaplastic(folder: Path, kind: str, processes: int) -> list[dict[str, Any]]:
    """One process sees in each batch what two see between them."""
    folder.mkdir()
    torch.manual_seed(0)
    rules: list[SynapticCallback] = [Cascade(3)]
    if kind == "mesu":
        mesu = MESU(50, 0.2, draws=3, prior="chain", coupling=0.1)
        rules = [mesu, BennaFusi(3, 0.3, gated_by="mesu")]
    if kind == "sum":
        rules = [BGD(0.1, reduction="sum")]
    if kind == "units":
        rules = [ContinualBackprop(0.2, maturity=1), ReDo(0.7, every_n_steps=2), EWC()]
    trainer = make_trainer(
        *rules,
        Report(rules, folder),
        max_epochs=3,
        accumulate_grad_batches=2,
        use_distributed_sampler=False,
        devices=processes,
        strategy=Forked() if processes > 1 else "auto",
    )
    net = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    model = (Summing if kind == "sum" else Net)(net, partial(torch.optim.Adam, lr=0.1)).double()
    x, y = task(0)
    sampler = EvenOrOdd(24) if processes > 1 else None
    data = TensorDataset(x.double(), y)
    trainer.fit(model, DataLoader(data, 8 // processes, sampler=sampler))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.parametrize("kind", ["mesu", "sum", "cascade", "units"])
def test_metaplastic_rules_learn_over_two_processes_what_they_do_in_one(kind: str, tmp_path: Path) -> None:
    """With several draws, and micro-batches whose gradients are not averaged one by one."""
    first, second = metaplastic(tmp_path / "two", kind, 2)
    assert same(first["states"], second["states"])
    assert same(dict(first["weights"]), dict(second["weights"]))
    (one,) = metaplastic(tmp_path / "one", kind, 1)
    torch.testing.assert_close(dict(first["weights"]), dict(one["weights"]), rtol=1e-6, atol=1e-9)
    for found, expected in zip(first["states"], one["states"], strict=True):
        torch.testing.assert_close(found["synapses"], expected["synapses"], rtol=1e-6, atol=1e-9)


class Scripted(Net):
    """Its loss has the height that the batch says."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        return loss * batch[2].mean() / loss.detach().clamp_min(1e-6)


class Found(Callback):
    def __init__(self, boundaries: DriftBoundaries, folder: Path) -> None:
        self.boundaries, self.folder = boundaries, folder

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        found = [list(boundary) for boundary in self.boundaries.found]
        torch.save(found, self.folder / f"found-{trainer.global_rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("monitor", ["loss", "feature_shift"])
def test_every_process_finds_the_same_boundaries_at_the_same_steps(monitor: str, tmp_path: Path) -> None:
    """Each sees a rise of its own; they agree on that of their mean."""
    heights = torch.tensor(
        [
            noisy([(0.1, 100), (2.0, 100), (40.0, 60)], seed=0),
            noisy([(0.1, 100), (0.5, 100), (10.0, 60)], seed=1),
        ]
    )
    x, y = task(0, samples=2 * 4 * 260)
    x[2 * 4 * 100 :] += 3.0
    x[2 * 4 * 200 :] -= 6.0
    # The sampler gives even samples to one process and odd ones to the other.
    per_sample = heights.T.repeat_interleave(4, dim=0).flatten()
    rules: list[SynapticCallback] = [SynapticIntelligence(1.0), OnTriples(1.0, samples=20)]
    boundaries = DriftBoundaries(
        monitor=monitor, feature_layer="net.0" if monitor == "feature_shift" else None
    )
    trainer = make_trainer(
        *rules,
        boundaries,
        Found(boundaries, tmp_path),
        Report(rules, tmp_path),
        strategy=Forked(),
        devices=2,
        use_distributed_sampler=False,
    )
    net = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    data = DataLoader(TensorDataset(x, y, per_sample), 4, sampler=EvenOrOdd(len(x)))
    trainer.fit(Scripted(net, partial(torch.optim.SGD, lr=0.01)), data)
    first, second = (torch.load(tmp_path / f"found-{rank}.pt") for rank in range(2))
    assert first == second
    assert len(first) == 2
    for (_, batch, onset), change in zip(first, (100, 200), strict=True):
        assert onset <= change + 2
        assert monitor == "feature_shift" or onset >= change - 2
        assert change < batch < change + 20
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert states[0]["states"][0]["tasks"] == states[0]["states"][1]["tasks"] == 2
    assert same(states[0]["states"], states[1]["states"])
    assert same(dict(states[0]["weights"]), dict(states[1]["weights"]))


class Shares(Callback):
    """Which tasks each batch is from, on each rank."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.shares = folder, []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.shares.append(batch[0][:, 0].mean().item())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        torch.save(self.shares, self.folder / f"shares-{trainer.global_rank}.pt")


def test_tasks_mix_around_the_change_on_every_process(tmp_path: Path) -> None:
    """Each sees half of the batches, and the ramp in its own."""
    sets = [TensorDataset(torch.full((160, FEATURES), float(k)), torch.zeros(160).long()) for k in range(2)]
    sequence = TaskSequence(
        [{"train": data, "test": data} for data in sets],
        batch_size=8,
        epochs_per_task=1,
        transition_batches=8,
    )
    trainer = make_trainer(
        Shares(tmp_path),
        SynapticIntelligence(1.0),
        FitBoundaries(),
        strategy=Forked(),
        devices=2,
        max_epochs=2,
        reload_dataloaders_every_n_epochs=1,
    )
    trainer.fit(Net(nn.Linear(FEATURES, CLASSES), partial(torch.optim.SGD, lr=0.1)), sequence)
    for rank in range(2):
        shares = torch.load(tmp_path / f"shares-{rank}.pt")
        assert len(shares) == 20
        assert shares[:6] == [0.0] * 6
        assert shares[14:] == [1.0] * 6
        assert 0.0 < sum(shares[6:10]) / 4 < 0.5 < sum(shares[10:14]) / 4 < 1.0
