"""Rehearsal in a real Trainer, against plain loops; and that it leaves no trace but its gradient."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from cl_callbacks import (
    MESU,
    DarkExperienceReplay,
    DriftBoundaries,
    EpochBoundaries,
    ExperienceReplay,
    SampleMemory,
    SynapticCallback,
    SynapticIntelligence,
)
from cl_callbacks.training.quiet_step import quiet_step, training_loss
from tests.odd.batches import loader_of, odd
from tests.references.replay import dark_loss, replay
from tests.small import CLASSES, FEATURES, Net, fit_tasks, loader, make_trainer, plain_net, task, weights

BATCH, DRAWN = 4, 6


def stream(samples: int = 48) -> tuple[Tensor, Tensor]:
    x, y = task(0, samples)
    return x.double(), y


def expected_draws(batches: int, kept: int, drawn: int = DRAWN, accumulate: int = 1) -> list[list[int]]:
    """Numbers of the samples of each step, from a memory of the samples' numbers."""
    memory, found = SampleMemory(kept), []
    for step in range(batches // accumulate):
        found.append([int(n) for part in memory.draw(drawn, step) for n in part.batch[0]])
        for i in range(step * accumulate, (step + 1) * accumulate):
            memory.add((torch.arange(i * BATCH, (i + 1) * BATCH), torch.zeros(BATCH)))
    return found


def model(optimizer: Any) -> Net:
    torch.manual_seed(0)
    return Net(plain_net(), optimizer).double()


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
}


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_replay_equals_a_plain_loop(optimizer: str, weight: float, accumulate: int) -> None:
    found, plain = model(OPTIMIZERS[optimizer]), model(OPTIMIZERS[optimizer])
    x, y = stream()
    rule = ExperienceReplay(10, batch_size=DRAWN, weight=weight)
    make_trainer(rule, accumulate_grad_batches=accumulate).fit(found, loader(x, y, batch_size=BATCH))
    draws = expected_draws(len(x) // BATCH, 10, accumulate=accumulate)
    assert draws[0] == [] and len(draws[-1]) == DRAWN
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    replay(
        plain.net, plain.configure_optimizers(), batches, lambda step, seen: draws[step],
        weight=weight, accumulate=accumulate,
    )  # fmt: skip
    torch.testing.assert_close(weights(found), weights(plain), rtol=1e-12, atol=1e-12)


def test_every_n_steps_and_the_size_of_the_batch() -> None:
    found, plain = model(OPTIMIZERS["sgd"]), model(OPTIMIZERS["sgd"])
    x, y = stream()
    make_trainer(ExperienceReplay(10, every_n_steps=3)).fit(found, loader(x, y, batch_size=BATCH))
    draws = expected_draws(12, 10, drawn=BATCH)
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    replay(
        plain.net, plain.configure_optimizers(), batches,
        lambda step, seen: [] if step % 3 else draws[step],
    )  # fmt: skip
    torch.testing.assert_close(weights(found), weights(plain), rtol=1e-12, atol=1e-12)


def test_joined_samples_are_learned_in_one_batch() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Seeing(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            seen.append(tuple(t.clone() for t in batch))
            return super().training_step(batch, batch_idx)

    torch.manual_seed(0)
    found = Seeing(plain_net(), OPTIMIZERS["sgd"]).double()
    x, y = stream()
    own: list[int] = []

    class Batches(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, i: int) -> None:
            own.append(len(batch[0]))

    rule = ExperienceReplay(10, batch_size=DRAWN, joined=True)
    make_trainer(rule, Batches()).fit(found, loader(x, y, batch_size=BATCH))
    assert "training_step" not in vars(found)
    assert own == [BATCH] * 12, "others see the task's own batch"
    seen = seen[1:]  # the first is a trial
    for step, numbers in enumerate(expected_draws(12, 10)):
        first = list(range(step * BATCH, (step + 1) * BATCH))
        assert torch.equal(seen[step][0], x[first + numbers])
        assert torch.equal(seen[step][1], y[first + numbers])


def test_dark_replay_equals_a_plain_loop_with_outputs_of_the_time_of_storing() -> None:
    found, plain = model(OPTIMIZERS["sgd"]), model(OPTIMIZERS["sgd"])
    x, y = stream()
    rule = DarkExperienceReplay(10, alpha=0.3, beta=0.7, batch_size=DRAWN)
    make_trainer(rule).fit(found, loader(x, y, batch_size=BATCH))
    optimizer, memory = plain.configure_optimizers(), SampleMemory(10)
    stored: list[Tensor] = []
    for step, (now_x, now_y) in enumerate(zip(x.split(BATCH), y.split(BATCH), strict=True)):
        optimizer.zero_grad()
        outputs = plain.net(now_x)
        F.cross_entropy(outputs, now_y).backward()
        first, second = (
            [int(n) for part in memory.draw(DRAWN, step, stream=s) for n in part.batch[0]] for s in (0, 1)
        )
        if first:
            assert first != second
            old = torch.stack([stored[n] for n in first])
            dark_loss(plain.net(x[first]), old, plain.net(x[second]), y[second], 0.3, 0.7).backward()
        optimizer.step()
        stored += list(outputs.detach())
        memory.add((torch.arange(step * BATCH, (step + 1) * BATCH), torch.zeros(BATCH)))
    torch.testing.assert_close(weights(found), weights(plain), rtol=1e-12, atol=1e-12)
    for sample in rule.samples:
        torch.testing.assert_close(sample.values[-1], stored[sample.number], rtol=1e-12, atol=1e-12)


def test_dark_replay_compares_a_grown_head_by_the_outputs_that_were_stored() -> None:
    class Growing(Net):
        def on_task_start(self, trainer: Any, pl_module: Any, task: int) -> None:
            if task == 1:
                old, self.net[2] = self.net[2], nn.Linear(8, CLASSES + 2).to(self.net[2].weight)
                with torch.no_grad():
                    self.net[2].weight[:CLASSES] = old.weight
                trainer.optimizers[0].add_param_group({"params": list(self.net[2].parameters())})

    rule = DarkExperienceReplay(12, alpha=1.0, beta=0.0, batch_size=12, past_only=True)
    net = Growing(plain_net(), lambda p: torch.optim.SGD(p, lr=0.1)).double()
    make_trainer(rule, EpochBoundaries(1), max_epochs=2).fit(net, loader(*stream(24)))
    assert {len(sample.values[-1]) for sample in rule.samples} == {CLASSES, CLASSES + 2}
    assert weights(net).isfinite().all()


class Loud(Net):
    """Whatever a training step may leave behind."""

    def __init__(self) -> None:
        super().__init__()
        self.metric, self.losses, self.table, self.latest = MeanMetric(), [], {}, None
        self.register_buffer("calls", torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.metric(loss)
        self.log("metric", self.metric)
        self.losses.append(loss.detach())
        self.table[len(self.losses)] = float(loss)
        self.latest, self.new = loss.detach(), 1
        self.calls += 1
        if self.logger is not None:
            self.logger.log_metrics({"by hand": float(loss)})
        return {"loss": loss + 0.0 * (torch.rand(()) + random.random() + np.random.rand())}


def test_a_quiet_step_leaves_everything_bit_for_bit(tmp_path: Any) -> None:
    class Repeating(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            numbers = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
            before = {n: copy.deepcopy(v) for n, v in vars(pl_module).items() if n in ("losses", "table")}
            with quiet_step(trainer, pl_module, seed=1):
                assert all(m.training for m in pl_module.modules() if not isinstance(m, MeanMetric))
                loss = training_loss(trainer, pl_module, batch, batch_idx)
                assert loss is not None
                torch.autograd.grad(loss, list(pl_module.parameters()))
            assert pl_module.losses == before["losses"] and pl_module.table == before["table"]
            assert torch.equal(torch.get_rng_state(), numbers[0]) and random.getstate() == numbers[1]
            assert (np.random.get_state()[1] == numbers[2]).all()

    found = []
    for callbacks in ([], [Repeating()]):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        net, logger = Loud(), CSVLogger(tmp_path / str(len(found)))
        trainer = make_trainer(*callbacks, logger=logger, max_epochs=2, log_every_n_steps=1)
        trainer.fit(net, loader(*task(0)))
        logged = {name: float(value) for name, value in trainer.logged_metrics.items()}
        file = (tmp_path / str(len(found)) / "lightning_logs/version_0/metrics.csv").read_text()
        found.append((net.state_dict(), logged, net.table, file))
    assert all(torch.equal(a, b) for a, b in zip(found[0][0].values(), found[1][0].values(), strict=True))
    assert {"metric", "train_loss"} <= found[0][1].keys()
    assert found[0][1:] == found[1][1:]


def test_a_replayed_step_moves_weights_and_nothing_else_of_its_own() -> None:
    """Metrics and BatchNorm have seen the batches of the task alone."""
    net, rule = Loud(), ExperienceReplay(8)
    make_trainer(rule, max_epochs=2).fit(net, loader(*task(0)))
    assert len(net.losses) == net.calls == net.net[1].num_batches_tracked == 6


def test_other_rules_see_the_gradient_of_the_task_alone() -> None:
    found = []
    for weight in (0.0, 0.5):
        seen: list[Tensor] = []

        class Looking(SynapticCallback):
            needs = frozenset({"gradients"})

            def observe(self, step: Any, seen: list[Tensor] = seen) -> None:
                seen.append(torch.cat([g.flatten() for g in step.gradients]).clone())

        net = model(lambda p: torch.optim.SGD(p, lr=0.0))
        rule = ExperienceReplay(10, weight=weight)
        make_trainer(rule, Looking()).fit(net, loader(*stream(), batch_size=BATCH))
        found.append(seen)
        assert rule.steps == len(seen) == 12
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_beside_other_rules(recwarn: pytest.WarningsRecorder) -> None:
    for other in (SynapticIntelligence(), MESU(100, 0.2)):
        net = Net(plain_net())
        fit_tasks(net, ExperienceReplay(8), other, tasks=2)
        assert weights(net).isfinite().all()
    assert not any("counts twice" in str(warning.message) for warning in recwarn)


def test_a_late_boundary_leaves_the_samples_before_the_change_to_the_task_that_ended() -> None:
    class Late(DriftBoundaries):
        def see(self, trainer: Any, batch: int, value: float) -> None:
            self._onset = min(batch + 1, 8)
            if batch == 11:
                self.end(trainer, as_of=self._as_of_onset(trainer))

    for before in (True, False):
        rule = ExperienceReplay(100, past_only=True)
        boundaries = Late(check_every_n_batches=1, snapshot_every_n_batches=4)
        callbacks = [rule, boundaries] if before else [boundaries, rule]
        make_trainer(*callbacks).fit(Net(), loader(*task(0, 8 * 16)))
        tasks = {sample.number: sample.task for sample in rule.samples}
        assert {n for n, task in tasks.items() if task == 0} == {n for n in tasks if n < 8 * 8}
        assert max(tasks.values()) == 1


def test_samples_are_bounded_and_said(capsys: pytest.CaptureFixture[str], caplog: Any) -> None:
    rule = ExperienceReplay(10)
    with caplog.at_level("INFO"):
        fit_tasks(Net(), rule, tasks=2)
    assert caplog.text.count("ExperienceReplay keeps up to 10 samples of some 32 bytes") == 1
    assert len(rule.samples) == 10
    assert rule.samples.bytes == 10 * (FEATURES * 4 + 8)


def test_outputs_beside_a_sample_count_among_its_bytes() -> None:
    outputs = 4 * CLASSES
    make_trainer(DarkExperienceReplay(10, max_bytes=10 * (32 + outputs))).fit(Net(), loader(*task(0)))
    with pytest.raises(ValueError, match=f"10 samples of {32 + outputs} bytes"):
        make_trainer(DarkExperienceReplay(10, max_bytes=10 * 32 + 1)).fit(Net(), loader(*task(0)))


def test_checkpoints_without_samples() -> None:
    rule = ExperienceReplay(10, save_samples=False)
    fit_tasks(Net(), rule, tasks=1)
    state = rule.state_dict()
    assert state["samples"] is None
    rule.load_state_dict(state)
    assert len(rule.samples) == 10, "what is there stays"
    with pytest.warns(UserWarning, match="no samples in the checkpoint"):
        ExperienceReplay(10, save_samples=False).load_state_dict(state)


class Manual(Net):
    automatic_optimization = False


class Fetching(Net):
    def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
        return super().training_step(next(dataloader_iter)[0], 0)


class Needing(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step([t.view(8, -1) for t in batch], batch_idx)


@pytest.mark.parametrize(
    ("net", "rule", "error", "sentence"),
    [
        (Manual, ExperienceReplay(8), MisconfigurationException, "use automatic optimization"),
        (Fetching, ExperienceReplay(8), MisconfigurationException, r"let it take \(batch, batch_idx\)"),
        (Needing, ExperienceReplay(8), ValueError, "could not train Needing on 4 of the 8 samples"),
        (Net, ExperienceReplay(800, max_bytes=3200), ValueError, "set memory=100, or raise max_bytes"),
        (Net, ExperienceReplay(8, joined=True), MisconfigurationException, "MESU runs in a way of its own"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_step(
    net: Any, rule: Any, error: Any, sentence: str
) -> None:
    others = [MESU(100, 0.2)] if rule.joined else []
    trainer, model = make_trainer(rule, *others), net()
    before = weights(model)
    with pytest.raises(error, match=sentence):
        trainer.fit(model, loader(*task(0)))
    assert trainer.global_step == 0
    assert torch.equal(before, weights(model))
    assert "training_step" not in vars(model)


def test_rows_that_look_like_samples_and_are_not() -> None:
    """Time before samples, and as many of both."""
    net, batches = odd("square")
    with pytest.raises(ValueError, match="could not train Odd"):
        make_trainer(ExperienceReplay(8)).fit(net, loader_of(batches))


def test_outputs_of_other_rows_than_the_batch() -> None:
    class Rows(DarkExperienceReplay):
        def outputs(self, pl_module: Any, batch: Any) -> Tensor:
            return pl_module(batch[0]).repeat(2, 1)

    with pytest.raises(ValueError, match="returned 16 rows for a batch of 8 samples"):
        make_trainer(Rows(8)).fit(Net(), loader(*task(0)))


def test_joined_samples_of_another_shape() -> None:
    class Longer(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step([batch[0][:, :FEATURES], batch[1]], batch_idx)

    data = [[torch.zeros(4, FEATURES + i), torch.zeros(4, dtype=torch.long)] for i in range(2)]
    batches: Any = DataLoader(data, batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="use joined=False"):
        make_trainer(ExperienceReplay(8, joined=True)).fit(Longer(), batches)
    rule = ExperienceReplay(8)
    make_trainer(rule).fit(Longer(), batches)
    assert rule.steps == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"weight": 0.5, "joined": True}, "joined=False"),
        ({"parameters": "net", "joined": True}, "train all weights"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"every_n_steps": 0}, "every_n_steps must be"),
        ({"memory": 0}, "memory must be"),
        ({"max_bytes": -1}, "max_bytes must be"),
        ({"select": "all"}, "select must be 'reservoir', 'balanced' or 'loss'"),
    ],
)
def test_arguments_that_cannot_work(arguments: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ExperienceReplay(**arguments)
