"""Statistics of synapses on a real Trainer: by hand, in files, on shards, and without a trace in training."""

from __future__ import annotations

import csv
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cl_callbacks import (
    EWC,
    MESU,
    BennaFusi,
    EpochBoundaries,
    FitBoundaries,
    MetaplasticGate,
    SynapseStatistics,
    SynapticCallback,
    SynapticIntelligence,
)
from cl_callbacks.observation.histograms import histogram
from cl_callbacks.observation.survey import QUANTILES, SAMPLES, Survey, read
from cl_callbacks.synapses.view import SynapseView
from tests.every_rule import every_rule, make
from tests.processes import train_together
from tests.settings.processes import DealtTasks, DoubleTasks, Sharded, fsdp2
from tests.settings.training import EPOCHS
from tests.small import CLASSES, FEATURES, Net, fit_tasks, loader, make_trainer, plain_net, task, weights
from tests.wandb_files import history


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures without a log folder go below the working directory."""
    monkeypatch.chdir(tmp_path)


class Known(SynapticCallback):
    """Synapses of known plasticity."""

    def __init__(self, plasticity: dict[str, Tensor], **options: Any) -> None:
        super().__init__(**options)
        self.known = plasticity

    def measures(self, synapses: SynapseView, rates: list[float]) -> dict[str, list[Tensor]]:
        return {"plasticity": [self.known[name] for name in synapses.names]}


class Looks(Callback):
    """Every look, with the number of the optimizer step."""

    observes = True

    def __init__(self, statistics: SynapseStatistics) -> None:
        self.statistics, self.found = statistics, [(0, statistics.latest)]

    def note(self, trainer: Any, *args: Any) -> None:
        if self.statistics.latest is not self.found[-1][1]:
            self.found.append((trainer.global_step, self.statistics.latest))

    on_train_batch_end = on_task_end = note

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self.found[1:]]


def test_means_frozen_fractions_and_quantiles_by_hand() -> None:
    model = Net(nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.Linear(CLASSES, CLASSES, bias=False)))
    generator = torch.Generator().manual_seed(0)
    known = {name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()}
    statistics = SynapseStatistics(frozen_below=0.3)
    fit_tasks(model, Known(known), statistics, tasks=1)
    first = torch.cat([known["net.0.weight"].flatten(), known["net.0.bias"]])
    second = known["net.1.weight"].flatten()
    expected = {"all": torch.cat([first, second]), "net.0": first, "net.1": second}
    found = statistics.latest["known"]["plasticity"]
    assert found.keys() == expected.keys()
    for layer, values in expected.items():
        quantiles = {name: values.quantile(q).item() for name, q in QUANTILES.items()}
        frozen = (values < 0.3).float().mean().item()
        by_hand = {"mean": values.mean().item(), "frozen_fraction": frozen} | quantiles
        assert found[layer] == pytest.approx(by_hand, rel=1e-5)
        assert 0 < frozen < 1


def test_a_large_network_is_sampled_evenly() -> None:
    """Small layers beside large ones, and columns that differ."""
    columns = torch.linspace(0, 1, 512).expand(512, 512)
    small = {f"small.{i}.w": torch.full((5,), 2.0) for i in range(400)}
    rule = Known(known := {"large.w": columns, **small})
    rule.synapses.place(known, list(known))
    survey = Survey(rule, {}, 0.1, by_layer=True)
    found, samples = read({"known": survey}, with_samples=True)
    layers = found["known"]["plasticity"]
    assert SAMPLES // 2 < len(samples["known"]["plasticity"]) <= SAMPLES
    everything = torch.cat([values.flatten() for values in known.values()])
    share = (samples["known"]["plasticity"] >= 2).mean()
    assert share == pytest.approx((everything >= 2).float().mean().item(), rel=0.05)
    for name, q in QUANTILES.items():
        assert layers["large"][name] == pytest.approx(q, abs=0.01)
        assert layers["all"][name] == pytest.approx(everything.quantile(q).item(), abs=0.01)


def test_the_measures_of_one_layer_exist_at_a_time() -> None:
    class Fleeting(Known):
        def measures(self, synapses: SynapseView, rates: list[float]) -> dict[str, list[Tensor]]:
            assert all(storage() is None for storage in storages)
            found = {"plasticity": [torch.rand(p.shape) for p in synapses.parameters]}
            storages.extend(weakref.ref(value.untyped_storage()) for value in found["plasticity"])
            return found

    storages: list[Any] = []
    rule = Fleeting({})
    rule.synapses.place(weights_of := {f"{i}.w": torch.zeros(100, 100) for i in range(5)}, list(weights_of))
    Survey(rule, {}, 0.1, by_layer=True)
    assert len(storages) == 5


@every_rule
def test_training_is_bit_identical(rule: str) -> None:
    found = []
    for observers in ([], [SynapseStatistics(1)]):
        torch.manual_seed(0)
        model = Net()
        fit_tasks(model, make(rule), *observers, EpochBoundaries(1), tasks=1, max_epochs=2)
        found.append(weights(model))
        assert not observers or observers[0].latest
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every_n_steps": 2}, [2, 4, 6, 6]),
        ({"every_n_steps": 4}, [4, 6]),
        ({"every_n_steps": None}, [6]),
    ],
)
def test_it_looks_every_so_many_steps_and_when_a_task_ends(options: Any, expected: list[int]) -> None:
    looks = Looks(statistics := SynapseStatistics(**options))
    fit_tasks(Net(plain_net()), MetaplasticGate(), statistics, looks, tasks=1, max_epochs=2)
    assert looks.steps == expected


def test_batches_that_accumulate_are_no_steps() -> None:
    looks = Looks(statistics := SynapseStatistics(1))
    fit_tasks(Net(plain_net()), MetaplasticGate(), statistics, looks, tasks=1, accumulate_grad_batches=2)
    assert looks.steps == [1, 2, 2]


def test_several_optimizers_pass_a_multiple() -> None:
    class Two(Net):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.net[0].parameters(), lr=0.1), torch.optim.SGD(
                self.net[2].parameters(), lr=0.2
            )

    looks = Looks(statistics := SynapseStatistics(3))
    memory = SynapticIntelligence(3.0, damping=1e-3)
    trainer = fit_tasks(Two(plain_net()), memory, statistics, looks, tasks=1, max_epochs=2)
    assert trainer.global_step == 12
    assert looks.steps == [4, 6, 10, 12, 12]
    view = memory.synapses.view
    rates = [0.1 if "net.0" in name else 0.2 for name in view.names]
    means = [(1 / (1 + 6.0 * rate * view["importance"][i])).mean() for i, rate in enumerate(rates)]
    sizes = [p.numel() for p in view.parameters]
    expected = sum(mean * size for mean, size in zip(means, sizes, strict=True)) / sum(sizes)
    assert statistics.latest["synaptic_intelligence"]["plasticity"]["all"]["mean"] == pytest.approx(expected)


@pytest.mark.parametrize("first", [True, False])
def test_at_the_end_of_a_task_the_rules_have_consolidated(first: bool) -> None:
    memory, statistics = EWC(20.0), SynapseStatistics(None)
    looks = Looks(statistics)
    fit_tasks(Net(plain_net()), *([statistics, looks, memory] if first else [memory, statistics, looks]))
    assert "importance" in looks.found[1][1]["ewc"]
    assert len(looks.found) == 3


def test_what_no_optimizer_moves_keeps_all_of_nothing() -> None:
    model = Net(plain_net())
    model.optimizer = lambda parameters: torch.optim.SGD(model.net[2].parameters(), lr=0.1)
    statistics = SynapseStatistics()
    fit_tasks(model, EWC(20.0), statistics)
    found = statistics.latest["ewc"]
    assert found["importance"]["net.0"]["mean"] > 0
    assert found["plasticity"]["net.0"]["mean"] == 1
    assert found["plasticity"]["net.2"]["mean"] < 1


class Counting(TorchDispatchMode):
    """Counts single numbers that are read from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_all_of_a_look_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    memories = [EWC(20.0), BennaFusi(4, 0.2), MetaplasticGate()]
    statistics = SynapseStatistics()
    trainer = fit_tasks(Net(plain_net()), *memories, statistics, tasks=1)
    copies = []
    plain = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: copies.append(self.numel()) or plain(self))
    with Counting() as counting:
        statistics._look(trainer, thoroughly=True)
    assert counting.reads == 0
    assert len(copies) == 1
    assert copies[0] > 100
    with Counting() as counting:  # it does count
        torch.ones(1).item()
    assert counting.reads == 1


def test_nothing_is_left_in_checkpoints(tmp_path: Path) -> None:
    trainer = fit_tasks(Net(plain_net()), EWC(1.0), SynapseStatistics(1))
    trainer.save_checkpoint(tmp_path / "file.ckpt")
    callbacks = torch.load(tmp_path / "file.ckpt", weights_only=True)["callbacks"]
    assert callbacks
    assert not any("Statistics" in key for key in callbacks)


def test_training_without_a_rule_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    statistics = SynapseStatistics(1)
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        fit_tasks(Net(plain_net()), statistics, FitBoundaries())
    assert "SynapseStatistics: this Trainer has no rule, whose synapses it would show." in caplog.messages
    assert statistics.latest == {}


def test_rules_of_one_name_are_numbered(recwarn: pytest.WarningsRecorder) -> None:
    statistics = SynapseStatistics()
    layers = [MetaplasticGate(parameters=r"net\.0"), MetaplasticGate(parameters=r"net\.2")]
    fit_tasks(Net(plain_net()), *layers, statistics)
    assert set(statistics.latest["metaplastic_gate"]["plasticity"]) == {"all", "net.0"}
    assert set(statistics.latest["metaplastic_gate-2"]["plasticity"]) == {"all", "net.2"}
    assert any("two rules are called 'metaplastic_gate'" in str(w.message) for w in recwarn)


def test_layers_that_are_called_like_a_statistic(tmp_path: Path) -> None:
    class Awkward(Net):
        def __init__(self) -> None:
            super().__init__(nn.Linear(FEATURES, CLASSES))
            self.mean, self.q05 = nn.Linear(CLASSES, CLASSES), nn.Linear(CLASSES, CLASSES)
            self.all = nn.Parameter(torch.ones(CLASSES))

        def forward(self, x: Tensor) -> Tensor:
            return self.q05(self.mean(self.net(x))) * self.all

    model, logger = Awkward(), CSVLogger(tmp_path)
    known = {name: torch.full_like(p, 0.5 + 0.05 * i) for i, (name, p) in enumerate(model.named_parameters())}
    statistics = SynapseStatistics()
    fit_tasks(model, Known(known), statistics, tasks=1, logger=logger)
    found = statistics.latest["known"]["plasticity"]
    assert set(found) == {"all", "all.", "net", "mean.", "q05."}
    with open(logger.experiment.metrics_file_path) as file:
        (logged,) = csv.DictReader(file)
    assert float(logged["cl_synapses/known/plasticity/mean"]) == found["all"]["mean"]
    assert float(logged["cl_synapses/known/plasticity/mean."]) == found["mean."]["mean"]
    assert float(logged["cl_synapses/known/frozen_fraction/all."]) == 0.0


def test_heads_that_grow_and_half_precision() -> None:
    class Growing(Net):
        def on_task_start(self, trainer: Any, pl_module: Any, task: int) -> None:
            if task == 1:
                self.net[2] = nn.Linear(8, CLASSES + 2, dtype=torch.bfloat16)
                trainer.optimizers[0].add_param_group({"params": list(self.net[2].parameters())})

    statistics = SynapseStatistics(1)
    memory = [EWC(20.0), MetaplasticGate(1.35), BennaFusi(3, 0.1)]
    trainer = make_trainer(*memory, statistics, EpochBoundaries(2), max_epochs=5, precision="bf16-true")
    trainer.fit(Growing(plain_net()), loader(*task(0)))
    numbers = [
        value
        for measures in statistics.latest.values()
        for layers in measures.values()
        for values in layers.values()
        for value in values.values()
    ]
    assert len(numbers) > 50
    assert np.isfinite(numbers).all()
    head = memory[1].synapses.view.parameters[1]
    gates = 1 - (1.35 * head.detach()).tanh() ** 2
    mean = statistics.latest["metaplastic_gate"]["plasticity"]["net.2"]["mean"]
    assert head.shape == (CLASSES + 2, 8)
    assert mean == pytest.approx(gates.float().mean().item(), rel=1e-2)


def test_what_is_logged_to_weights_and_biases(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    memory, statistics = EWC(20.0), SynapseStatistics(2)
    fit_tasks(Net(plain_net()), memory, statistics, tasks=2, logger=logger)
    logger.experiment.finish()
    rows = history(tmp_path)
    looks = [row for row in rows if "cl_synapses/ewc/plasticity/mean" in row]
    assert [row["trainer/global_step"] for row in looks] == [1, 3, 3, 5, 6]
    assert "cl_synapses/ewc/importance/mean" not in looks[0]
    latest = statistics.latest["ewc"]
    assert looks[-1]["cl_synapses/ewc/importance/net.0"] == latest["importance"]["net.0"]["mean"]
    assert looks[-1]["cl_synapses/ewc/importance/q95"] == latest["importance"]["all"]["q95"]
    frozen = looks[-1]["cl_synapses/ewc/frozen_fraction/net.2"]
    assert frozen == latest["plasticity"]["net.2"]["frozen_fraction"]
    bars = [row for row in rows if any("histogram" in key for key in row)]
    assert [row["trainer/global_step"] for row in bars] == [3, 6]
    for measure in ("plasticity", "distance"):
        assert bars[-1][f"cl_synapses/ewc/{measure}/histogram/_type"] == "histogram"
        assert sum(bars[-1][f"cl_synapses/ewc/{measure}/histogram/values"]) == 83
    positive = torch.cat([t.flatten() for t in memory.synapses.view["importance"]])
    positive = positive[positive > 0].log10()
    key = "cl_synapses/ewc/importance/log10_histogram"
    assert sum(bars[-1][f"{key}/values"]) == len(positive)
    edges = bars[-1][f"{key}/bins"]
    assert [edges[0], edges[-1]] == pytest.approx([positive.min().item(), positive.max().item()])


def test_without_layers_and_histograms(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    statistics = SynapseStatistics(2, by_layer=False, histograms=False)
    fit_tasks(Net(plain_net()), EWC(20.0), statistics, tasks=1, logger=logger)
    logger.experiment.finish()
    keys = {key for row in history(tmp_path) for key in row if key.startswith("cl_synapses")}
    assert "cl_synapses/ewc/importance/mean" in keys
    assert not any("histogram" in key or "net." in key for key in keys)
    assert set(statistics.latest["ewc"]["plasticity"]) == {"all"}
    assert not list(tmp_path.rglob("*.png"))


def test_numbers_that_differ_by_rounding_have_a_histogram() -> None:
    for values in (np.array([1.0, np.nextafter(1.0, 0.0)]), np.ones(2), np.zeros(2)):
        assert histogram(values)[0].sum() == 2


@pytest.mark.parametrize("early", [False, True])
def test_figures_when_training_is_over(early: bool, tmp_path: Path) -> None:
    """Also of a task that only the end of the fit ends, wherever the boundaries are in the list."""

    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.should_stop = early

    callbacks = [SynapseStatistics(), FitBoundaries(), EWC(20.0), MESU(100), Stop()]
    fit_tasks(
        Net(plain_net()), *callbacks, tasks=1, max_epochs=3,
        logger=CSVLogger(tmp_path, version="here"),
    )  # fmt: skip
    figures = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")}
    folder = "lightning_logs/here/figures/cl_synapses"
    assert figures == {
        f"{folder}-ewc-importance_by_layer.png",
        f"{folder}-ewc-plasticity_by_layer.png",
        f"{folder}-mesu-plasticity_by_layer.png",
    }


def test_measures_out_of_bounds_are_not_drawn_and_training_ends_well(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model = Net(plain_net())
    known = {name: torch.full_like(p, 2.0) for name, p in model.named_parameters()}
    fit_tasks(model, Known(known), SynapseStatistics(), tasks=1, logger=CSVLogger(tmp_path))
    assert any("known: no figure: frozen_fraction and mean_plasticity" in str(w.message) for w in recwarn)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be a whole number, at least 1, or None; got 0"),
        ({"frozen_below": 0.0}, "frozen_below must be a finite number above 0 and at most 1; got 0.0"),
        ({"frozen_below": float("nan")}, "frozen_below must be a finite number"),
    ],
)
def test_arguments_that_cannot_work(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SynapseStatistics(**options)


def observed(model: LightningModule, data: Any, **options: Any) -> list[Any]:
    statistics = SynapseStatistics(3)
    looks = Looks(statistics)
    rules: list[Any] = [EWC(20.0), SynapticIntelligence(5.0, damping=1e-3), MetaplasticGate(5.0)]
    trainer = make_trainer(
        *rules,
        BennaFusi(3, 0.2),
        statistics,
        looks,
        EpochBoundaries(EPOCHS),
        max_epochs=2 * EPOCHS,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        **options,
    )
    trainer.fit(model, data)
    return looks.found[1:]


def double(kind: type[Net]) -> Net:
    torch.manual_seed(0)
    return kind(plain_net(), partial(torch.optim.Adam, lr=0.01)).double()


def two(rank: int, folder: Path) -> None:
    found = observed(
        double(Sharded), DealtTasks(), devices=2, strategy=fsdp2(), logger=CSVLogger(folder, version="here")
    )
    torch.save(found, folder / f"{rank}.pt")


def flat(path: str, found: Any) -> Iterator[tuple[str, float]]:
    if isinstance(found, dict):
        for key, inner in found.items():
            yield from flat(f"{path}/{key}", inner)
    else:
        yield path, found


def test_on_shards_the_numbers_are_those_of_a_single_process(tmp_path: Path) -> None:
    train_together(2, two, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = observed(double(Net), DoubleTasks())
    assert first == second
    assert [step for step, _ in first] == [step for step, _ in alone] == [3, 6, 6, 9, 12, 12]
    for (_, theirs), (_, mine) in zip(first, alone, strict=True):
        assert dict(flat("", theirs)) == pytest.approx(dict(flat("", mine)), rel=1e-6, abs=1e-9)
    figures = tmp_path / "lightning_logs/here/figures"
    assert (figures / "cl_synapses-ewc-importance_by_layer.png").is_file()
