"""Changes found online, on a real Trainer, and what the task that ended is consolidated on."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks import EWC, DriftBoundaries, RWalk, SynapticIntelligence
from cl_callbacks.drift import CUSUM, Plateau
from cl_callbacks.training.task_batches import task_batches
from tests.drift.traces import noisy
from tests.small import CLASSES, FEATURES, Net, loader, make_trainer, plain_net, task, weights
from tests.wandb_files import history

SAMPLES = 4  # in a batch


class Scripted(Net):
    """Its loss has the height that the batch says."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("height", batch[2].mean())
        self.log("goodness", -batch[2].mean())
        return loss * batch[2].mean() / loss.detach().clamp_min(1e-6)


def stream(heights: list[float]) -> Any:
    x, y = task(0, samples=SAMPLES * len(heights))
    height = torch.tensor(heights).repeat_interleave(SAMPLES)
    number = torch.arange(len(heights)).repeat_interleave(SAMPLES)
    return loader(x, y, height, number, batch_size=SAMPLES)


HEIGHTS = noisy([(0.1, 103), (1.0, 100), (8.0, 60)])


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


class Looking(Callback):
    """What the network is after each batch, and what it is when a task ends."""

    def __init__(self) -> None:
        self.history: list[Tensor] = []
        self.ends: list[tuple[Tensor, list[int]]] = []
        self.tasks: list[tuple[str, int]] = []

    @staticmethod
    def network(pl_module: Any) -> Tensor:
        statistics = [b.float().flatten() for b in pl_module.buffers()]
        return torch.cat([weights(pl_module), *statistics])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.history.append(self.network(pl_module))

    def on_task_start(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.tasks.append(("start", task))

    def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.tasks.append(("end", task))
        kept = [int(n) for batch in task_batches(trainer, None) for n in batch[3]]
        self.ends.append((self.network(pl_module), kept))


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("first", [True, False])
def test_a_task_ends_as_of_the_onset_of_the_change(first: bool, accumulate: int) -> None:
    looking, boundaries = Looking(), DriftBoundaries(recent_samples=20)
    callbacks = [boundaries, looking] if first else [looking, boundaries]
    trainer = make_trainer(*callbacks, accumulate_grad_batches=accumulate)
    trainer.fit(Scripted(with_batch_norm()), stream(HEIGHTS))
    assert looking.tasks == [("start", 0), ("end", 0), ("start", 1), ("end", 1), ("start", 2)]
    assert boundaries.task_is_open
    for found, (network, kept), change in zip(boundaries.found, looking.ends, (103, 203), strict=True):
        assert abs(found.onset - change) <= 2
        assert change < found.batch < change + 20
        assert found.delay == found.batch - found.onset
        # The network is that of the last snapshot before the onset; every tenth batch there is one.
        same = [i for i, then in enumerate(looking.history) if torch.equal(then, network)]
        assert found.onset - 10 <= max(same) <= found.onset
        # Samples are the last from before it, and none since.
        assert kept == sorted(kept)
        assert sorted(set(kept)) == list(range(found.onset - 5, found.onset))


def test_training_goes_on_as_if_nothing_had_happened() -> None:
    found, boundaries = [], DriftBoundaries()
    for callbacks in ([], [boundaries]):
        torch.manual_seed(0)
        model = Scripted()
        make_trainer(*callbacks).fit(model, stream(HEIGHTS))
        found.append(Looking.network(model))
    assert len(boundaries.found) == 2
    assert torch.equal(*found)


def test_found_boundaries_are_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    boundaries, logger = DriftBoundaries(), WandbLogger(save_dir=tmp_path, offline=True)
    trainer = make_trainer(boundaries, logger=logger, log_every_n_steps=10)
    trainer.fit(Scripted(plain_net()), stream(HEIGHTS))
    wandb.finish()
    rows = history(tmp_path)
    events = [row for row in rows if "cl/boundary" in row]
    assert [row["cl/boundary"] for row in events] == [0, 1]
    for row, found in zip(events, boundaries.found, strict=True):
        assert row["trainer/global_step"] == found.batch
        assert row["cl/boundary_onset"] == found.onset
        assert row["cl/boundary_delay"] == found.delay
        assert row["cl/drift/score"] > 12.0
    scores = [row["cl/drift/score"] for row in rows if "cl/drift/score" in row]
    assert len(scores) == len(HEIGHTS) // 10 + 2
    assert min(scores) == 0.0


def test_an_accumulated_step_is_logged_once(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(DriftBoundaries(), logger=logger, log_every_n_steps=10, accumulate_grad_batches=4)
    trainer.fit(Scripted(plain_net()), stream(HEIGHTS[:100]))
    logger.save()
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").open()))
    assert [row["step"] for row in rows if row["cl/drift/score"]] == ["9", "19"]


def test_a_logged_key_of_either_mode() -> None:
    onsets = []
    for options in ({}, {"monitor": "height"}, {"monitor": "goodness", "mode": "max"}):
        boundaries = DriftBoundaries(**options)
        make_trainer(boundaries).fit(Scripted(plain_net()), stream(HEIGHTS))
        onsets.append([found.onset for found in boundaries.found])
    assert onsets[0] == onsets[1] == onsets[2] != []


def test_a_shift_that_the_loss_misses_is_found_in_the_features() -> None:
    class Blind(Net):
        """Trains on noise: its loss stays where it is."""

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

    torch.manual_seed(0)
    x, y = torch.randn(8 * 300, FEATURES), torch.randint(0, CLASSES, (8 * 300,))
    x[8 * 200 :] += 2.0
    data = loader(x, y, batch_size=8)
    for monitor, changes in (("loss", 0), ("feature_shift", 1)):
        boundaries = DriftBoundaries(monitor=monitor)
        model = Blind(plain_net(), lambda p: torch.optim.SGD(p, lr=1e-3))
        make_trainer(boundaries).fit(model, data)
        assert len(boundaries.found) == changes, monitor
    assert 195 <= boundaries.found[0].onset <= 201
    assert 200 <= boundaries.found[0].batch <= 220
    assert not any(module._forward_pre_hooks for module in model.modules())
    named = DriftBoundaries(monitor="feature_shift", feature_layer="net.0")
    make_trainer(named).fit(Blind(plain_net(), lambda p: torch.optim.SGD(p, lr=1e-3)), data)
    assert len(named.found) == 1
    with pytest.raises(MisconfigurationException, match="feature_layer='nowhere' is no module of Blind"):
        make_trainer(DriftBoundaries(monitor="feature_shift", feature_layer="nowhere")).fit(Blind(), data)


def test_features_of_pictures_are_channels() -> None:
    boundaries = DriftBoundaries(monitor="feature_shift", feature_layer="net.1")

    class Pictures(Net):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(nn.Conv2d(1, 5, 3), nn.Conv2d(5, CLASSES, 1)))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).mean((2, 3))

    data = loader(torch.randn(64, 1, 6, 6), torch.zeros(64).long())
    make_trainer(boundaries).fit(Pictures(), data)
    assert boundaries.signal.shift.mean.shape == (5,)


@pytest.mark.slow
@pytest.mark.parametrize("at", [60, 106, 107, 150])
def test_resume_is_bit_identical(at: int, tmp_path: Path) -> None:
    """At rest, between onset and alarm, and soon after a boundary; one batch per epoch."""

    class ByEpoch(Scripted):
        def train_dataloader(self) -> Any:
            epoch = self.trainer.current_epoch
            return loader(*stream(HEIGHTS).dataset[SAMPLES * epoch : SAMPLES * (epoch + 1)])

    def run(epochs: int, resumed: Path | None = None) -> tuple[Any, ...]:
        torch.manual_seed(0)
        model, rules = ByEpoch(with_batch_norm()), [SynapticIntelligence(1.0), EWC(1.0, samples=20)]
        for rule in rules:
            rule.outputs = lambda pl_module, batch: (pl_module(batch[0]), batch[1])
        boundaries = DriftBoundaries(recent_samples=20)
        saving = ModelCheckpoint(tmp_path / str(epochs), save_last=True, save_top_k=0)
        trainer = make_trainer(
            *rules, boundaries, saving, max_epochs=epochs, enable_checkpointing=True,
            reload_dataloaders_every_n_epochs=1,
        )  # fmt: skip
        trainer.fit(model, ckpt_path=resumed, weights_only=True)
        return Looking.network(model), [rule.state_dict() for rule in rules], boundaries.state_dict()

    whole = run(240)
    assert whole[1][0]["tasks"] == whole[1][1]["tasks"] == 2
    run(at)
    resumed = run(240, tmp_path / str(at) / "last.ckpt")
    assert_equal(resumed, whole)


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    else:
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_the_last_checkpoint_has_the_present_weights_and_the_consolidated_task(tmp_path: Path) -> None:
    class Saved(Callback):
        def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
            self.then = weights(pl_module)

    rule, boundaries, saved = SynapticIntelligence(1.0), DriftBoundaries(), Saved()
    saving = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, every_n_train_steps=1)
    model = Scripted(plain_net())
    trainer = make_trainer(saving, rule, boundaries, saved, max_steps=110, enable_checkpointing=True)
    trainer.fit(model, stream(HEIGHTS))
    (found,) = boundaries.found
    assert found.batch == 109
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 110
    assert_equal(checkpoint["state_dict"], dict(model.state_dict()))
    assert not torch.equal(saved.then, weights(model))
    assert checkpoint["callbacks"][rule.state_key]["tasks"] == 1
    assert checkpoint["callbacks"]["DriftBoundaries"]["found"] == [list(found)]


def test_present_weights_come_back_after_an_exception() -> None:
    class Failing(Looking):
        def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
            super().on_task_end(trainer, pl_module, task)
            raise RuntimeError("out of luck")

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            self.present = self.network(pl_module)

    failing, rule, model = Failing(), SynapticIntelligence(1.0), Scripted(with_batch_norm())
    with pytest.raises(RuntimeError, match="out of luck"):
        make_trainer(failing, rule, DriftBoundaries()).fit(model, stream(HEIGHTS))
    assert torch.equal(Looking.network(model), failing.present)
    assert not torch.equal(Looking.network(model), failing.ends[0][0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "heights",
    [
        noisy([(2.0, 100), (0.5, 100), (0.1, 100)]),
        [0.5] * 300,
        [2.0 * 0.99**i for i in range(300)],
        noisy([(0.1, 300)]),
    ],
)
def test_silent_without_a_change(heights: list[float]) -> None:
    boundaries = DriftBoundaries()
    make_trainer(boundaries).fit(Scripted(plain_net()), stream(heights))
    assert boundaries.found == []
    assert boundaries.task == 0


def test_losses_that_are_not_finite_are_counted_and_passed_over() -> None:
    class Cleaned(Scripted):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            for p in self.parameters():
                p.grad.nan_to_num_(0.0, 0.0, 0.0)

    heights = [h if i % 7 else (float("nan"), float("inf"))[i % 2] for i, h in enumerate(HEIGHTS)]
    boundaries = DriftBoundaries()
    with pytest.warns(UserWarning, match="passes over values that are not finite, such as that of batch 0"):
        make_trainer(boundaries).fit(Cleaned(plain_net()), stream(heights))
    assert boundaries.skipped == 38  # of 263 batches every seventh
    for found, change in zip(boundaries.found, (103, 203), strict=True):
        assert abs(found.onset - change) <= 2


def test_batches_that_are_skipped_keep_their_number() -> None:
    class Skipping(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx % 3 == 1 else super().training_step(batch, batch_idx)

    boundaries = DriftBoundaries()
    make_trainer(boundaries).fit(Skipping(plain_net()), stream(HEIGHTS))
    for found, change in zip(boundaries.found, (103, 203), strict=True):
        assert abs(found.onset - change) <= 3


def test_more_recent_samples_than_a_task_has() -> None:
    """What came before the last boundary is not served again."""
    looking = Looking()
    make_trainer(looking, DriftBoundaries(recent_samples=10_000)).fit(Scripted(plain_net()), stream(HEIGHTS))
    assert looking.ends[0][1][0] == 0
    assert 101 <= looking.ends[1][1][0] <= 105


def test_no_second_boundary_within_min_task_steps() -> None:
    heights = noisy([(0.1, 100), (1.0, 40), (8.0, 100)])
    found = {}
    for least in (30, 90):
        boundaries = DriftBoundaries(min_task_batches=least)
        make_trainer(boundaries).fit(Scripted(plain_net()), stream(heights))
        found[least] = len(boundaries.found)
    assert found == {30: 2, 90: 1}


def test_what_is_kept_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    make_trainer(Looking(), DriftBoundaries()).fit(Scripted(plain_net()), stream(HEIGHTS[:20]))
    assert (
        "up to 500 samples from before a change and as many since, on the CPU in at most 256 MiB"
        in caplog.text
    )
    with pytest.warns(UserWarning, match="room for 11 of the 500 recent_samples"):
        # 44 bytes a sample
        boundaries = DriftBoundaries(recent_bytes=1000)
        make_trainer(Looking(), boundaries).fit(Scripted(plain_net()), stream(HEIGHTS[:20]))
    caplog.clear()
    make_trainer(DriftBoundaries()).fit(Scripted(plain_net()), stream(HEIGHTS[:20]))
    assert "samples from before" not in caplog.text  # since nobody would read them


def test_a_key_that_is_never_logged() -> None:
    for heights in (HEIGHTS[:20], HEIGHTS):
        with pytest.raises(MisconfigurationException, match=r"'train_acc' is to be watched, .*'goodness'"):
            make_trainer(DriftBoundaries(monitor="train_acc")).fit(Scripted(plain_net()), stream(heights))


def test_a_training_step_without_a_loss_is_refused() -> None:
    class Manual(Net):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

    with pytest.raises(MisconfigurationException, match="training_step of Manual returns none"):
        make_trainer(DriftBoundaries()).fit(Manual(), loader(*task(0)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"detector": Plateau()}, "use PlateauBoundaries"),
        ({"mode": "up"}, "mode must be 'min' or 'max'"),
        ({"feature_layer": "net"}, "for monitor='feature_shift'"),
        ({"min_task_batches": 1}, "min_task_batches"),
        ({"min_task_batches": 5, "check_every_n_batches": 6}, "must not exceed min_task_batches=5"),
        ({"snapshot_every_n_batches": 0}, "snapshot_every_n_batches"),
        ({"recent_samples": 0}, "recent_samples"),
        ({"recent_bytes": -1.0}, "recent_bytes"),
        ({"check_every_n_batches": 0}, "check_every_n_batches"),
    ],
)
def test_arguments_that_cannot_work(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DriftBoundaries(**arguments)


def test_a_detector_without_the_protocol() -> None:
    with pytest.raises(TypeError, match="drift_detected"):
        DriftBoundaries(detector=object())  # type: ignore[arg-type]
    assert DriftBoundaries(CUSUM(20.0)).found == []


class Growing(Callback):
    """Gives the head two more classes, for another output layer with the old rows in it."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.at:
            old = pl_module.net[2]
            new = nn.Linear(old.in_features, old.out_features + 2)
            with torch.no_grad():
                new.weight[: old.out_features] = old.weight
                new.bias[: old.out_features] = old.bias
            pl_module.net[2] = new
            trainer.optimizers[0].add_param_group({"params": list(new.parameters())})


def test_a_head_that_grows_between_onset_and_alarm() -> None:
    rule, boundaries, looking = SynapticIntelligence(1.0), DriftBoundaries(), Looking()
    model = Scripted(plain_net())
    make_trainer(Growing(104), rule, boundaries, looking, max_steps=120).fit(model, stream(HEIGHTS))
    assert len(boundaries.found) == 1
    assert model.net[2].weight.shape[0] == CLASSES + 2
    before = looking.history[100]  # the last snapshot before the change
    then = looking.ends[0][0]
    hidden = 8 * FEATURES + 8
    assert torch.equal(then[:hidden], before[:hidden])
    assert torch.equal(then[hidden : hidden + CLASSES * 8], before[hidden : hidden + CLASSES * 8])
    importance = rule.synapses.state_dict()["importance"]
    assert importance["net.2.weight"][:CLASSES].sum() > 0


class Toggling(Callback):
    def __init__(self, at: int, trainable: bool) -> None:
        self.at, self.trainable = at, trainable

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.at:
            pl_module.net[0].requires_grad_(self.trainable)


def test_a_layer_that_is_frozen_between_onset_and_alarm_is_taken_back_too() -> None:
    looking, boundaries = Looking(), DriftBoundaries()
    trainer = make_trainer(Toggling(107, trainable=False), boundaries, looking, max_steps=120)
    trainer.fit(Scripted(plain_net()), stream(HEIGHTS))
    assert len(boundaries.found) == 1
    assert torch.equal(looking.ends[0][0], looking.history[100])


@pytest.mark.parametrize("make", [SynapticIntelligence, RWalk])
def test_what_a_layer_has_gathered_that_thawed_since_counts_once(make: Any) -> None:
    """The snapshot does not know it: all of it goes into the task that ends."""
    model = Scripted(plain_net())
    model.net[0].requires_grad_(False)
    rule, boundaries = make(1.0), DriftBoundaries()
    paths: list[Tensor] = []

    class Watching(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            kept = rule.synapses.state_dict()["fisher" if make is RWalk else "path"]
            paths.append(kept["net.0.weight"].clone() if "net.0.weight" in kept else torch.zeros(1))

    trainer = make_trainer(Toggling(104, trainable=True), Watching(), rule, boundaries, max_steps=120)
    trainer.fit(model, stream(HEIGHTS))
    (found,) = boundaries.found
    before, after = paths[found.batch], paths[found.batch + 1]
    # A running Fisher goes on; a path that the task's end has read starts anew.
    assert after.abs().sum() <= (1.5 if make is RWalk else 0.7) * before.abs().sum()


def test_a_gradient_that_is_not_finite_leaves_a_late_boundary_right() -> None:
    class Cleaned(Scripted):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.cleaned = True
            for p in self.parameters():
                p.grad.nan_to_num_(0.0, 0.0, 0.0)

    heights = [*HEIGHTS]
    heights[50] = float("nan")
    rule, boundaries = SynapticIntelligence(1.0), DriftBoundaries()
    make_trainer(rule, boundaries).fit(Cleaned(plain_net()), stream(heights))
    assert rule.tasks == 2
    assert all(path.isfinite().all() for path in rule.synapses.view["path"])
    assert sum(importance.sum() for importance in rule.synapses.view["importance"]) > 0


def test_batches_that_never_come_and_a_fit_that_breaks_off() -> None:
    """What is kept is numbered as the values are."""

    class Gaps:
        def __iter__(self) -> Any:
            for batch in stream(HEIGHTS):
                yield batch
                if int(batch[3][0]) % 4 == 0:
                    yield None

    looking, boundaries = Looking(), DriftBoundaries(recent_samples=20)
    model = Scripted(plain_net())
    make_trainer(looking, boundaries).fit(model, Gaps())
    for _, kept in looking.ends:
        assert len(set(kept)) == 5
    assert max(looking.ends[0][1]) in (101, 102)
    assert max(looking.ends[1][1]) in (201, 202)

    class Breaking(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 30:
                raise RuntimeError("out of luck")
            return super().training_step(batch, batch_idx)

    looking, boundaries = Looking(), DriftBoundaries(recent_samples=20)
    with pytest.raises(RuntimeError, match="out of luck"):
        make_trainer(boundaries).fit(Breaking(plain_net()), stream(HEIGHTS))
    make_trainer(looking, boundaries).fit(Scripted(plain_net()), stream(HEIGHTS))
    assert max(looking.ends[0][1]) in (101, 102)


def test_a_value_that_is_logged_now_and_then_is_seen_once() -> None:
    seen: list[float] = []

    class Sometimes(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx % 10 == 0:
                self.log("rare", float(batch_idx))
            return super().training_step(batch, batch_idx)

    class Watching(DriftBoundaries):
        def see(self, trainer: Any, batch: int, value: float) -> None:
            assert batch == value
            seen.append(value)

    make_trainer(Watching(monitor="rare")).fit(Sometimes(plain_net()), stream(HEIGHTS))
    assert seen == [float(i) for i in range(0, 250, 10)]


def test_layers_that_give_no_features() -> None:
    class Unused(Scripted):
        def __init__(self) -> None:
            super().__init__(plain_net())
            self.teacher = nn.Linear(3, 3)

    with pytest.raises(MisconfigurationException, match="has not run in 100 training steps"):
        make_trainer(DriftBoundaries(monitor="feature_shift")).fit(Unused(), stream(HEIGHTS))

    class Tokens(Net):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(nn.Embedding(4, 5), nn.Flatten(), nn.Linear(10, CLASSES)))

    boundaries = DriftBoundaries(monitor="feature_shift", feature_layer="net.0")
    with pytest.raises(MisconfigurationException, match="name another feature_layer"):
        make_trainer(boundaries).fit(Tokens(), loader(torch.zeros(8, 2).long(), torch.zeros(8).long()))


def test_values_that_came_with_the_alarm_are_seen_after_a_resume(tmp_path: Path) -> None:
    """A checkpoint that is written again at the boundary, in the midst of an accumulated step."""
    boundaries = DriftBoundaries(check_every_n_batches=17)
    saving = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, every_n_train_steps=29)
    options = {"accumulate_grad_batches": 4, "max_steps": 30, "enable_checkpointing": True}
    make_trainer(saving, boundaries, **options).fit(Scripted(plain_net()), stream(HEIGHTS))
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["DriftBoundaries"]
    assert [found[1] for found in state["found"]] == [118]
    assert 0 < len(state["unseen"]) < 17
    resumed = DriftBoundaries(check_every_n_batches=17)
    resumed.load_state_dict(state)
    make_trainer(resumed, max_steps=1).fit(Scripted(plain_net()), stream(HEIGHTS))
    assert resumed.state_dict()["rise"] == boundaries.state_dict()["rise"]
