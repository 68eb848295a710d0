"""Tasks found in the loss, on a real Trainer."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks import MAS, PlateauBoundaries, SynapticIntelligence
from cl_callbacks.drift import Plateau
from tests.small import CLASSES, FEATURES, Net, loader, make_trainer, plain_net, task, weights


class Scripted(Net):
    """Its loss has the height that the batch says."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        return loss * batch[2].mean() / loss.detach()


class Events(Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def on_task_start(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.seen.append(("start", task, trainer.fit_loop.epoch_loop.batch_idx))

    def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.seen.append(("end", task, trainer.fit_loop.epoch_loop.batch_idx))


def stream(heights: list[float], samples: int = 4) -> Any:
    x, y = task(0, samples=samples * len(heights))
    height = torch.tensor(heights).repeat_interleave(samples)
    return loader(x, y, height, batch_size=samples)


HEIGHTS = [2.0] * 20 + [0.1] * 20 + [2.0] * 20 + [0.1] * 20


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_task_ends_when_the_loss_has_come_to_rest(accumulate: int) -> None:
    events, boundaries = Events(), PlateauBoundaries(check_every_n_batches=1)
    trainer = make_trainer(events, boundaries, accumulate_grad_batches=accumulate)
    trainer.fit(Scripted(plain_net()), stream(HEIGHTS))
    # Five low losses are a plateau.
    assert [event for event in events.seen if event[0] == "end"] == [("end", 0, 24), ("end", 1, 64)]
    assert [task for kind, task, _ in events.seen if kind == "start"] == [0, 1, 2]
    assert boundaries.task_is_open
    # In units of the user's loss, whatever is accumulated.
    assert boundaries.detector.last[0] == pytest.approx(0.1, rel=1e-3)


def test_losses_are_read_a_few_at_a_time() -> None:
    events = Events()
    trainer = make_trainer(events, PlateauBoundaries(check_every_n_batches=10))
    trainer.fit(Scripted(plain_net()), stream(HEIGHTS))
    assert [event for event in events.seen if event[0] == "end"] == [("end", 0, 29), ("end", 1, 69)]


def test_rules_measure_on_the_recent_samples() -> None:
    seen: list[Tensor] = []

    class Looking(MAS):
        def outputs(self, pl_module: Any, batch: Any) -> Any:
            if len(batch[0]) > 1:  # not one of the samples that are checked alone
                seen.append(batch[0])
            return pl_module(batch[0]), batch[1]

    rule = Looking(1.0, samples=None)
    data = stream(HEIGHTS)
    make_trainer(rule, PlateauBoundaries(check_every_n_batches=1, recent_samples=8)).fit(
        Scripted(plain_net()), data
    )
    assert rule.tasks == 2
    last = data.dataset.tensors[0][4 * 63 : 4 * 65]
    assert torch.equal(torch.cat(seen[-2:]), last)


class OnTriples(PlateauBoundaries):
    def outputs(self, pl_module: Any, batch: Any) -> Any:
        return pl_module(batch[0]), batch[1]


def test_the_hardest_samples_are_kept() -> None:
    """With weights at rest: the highest losses of all samples seen so far."""
    boundaries = OnTriples(hard_samples=7)
    model = Scripted(plain_net(), lambda p: torch.optim.SGD(p, lr=0.0))
    data = stream([1.0] * 10)
    make_trainer(boundaries).fit(model, data)
    x, y, _ = data.dataset.tensors
    losses = F.cross_entropy(model(x), y, reduction="none")
    hardest = losses.topk(7).indices
    ((kept, *_),) = boundaries.recent_batches
    torch.testing.assert_close(kept[kept[:, 0].argsort()], x[hardest][x[hardest][:, 0].argsort()])
    restored = OnTriples(hard_samples=7)
    restored.load_state_dict(boundaries.state_dict())
    ((again, *_),) = restored.recent_batches
    assert torch.equal(again, kept)


@pytest.mark.parametrize(("hard", "kept"), [(10, 10), (30, 24)])
def test_a_sample_that_comes_again_is_held_once(hard: int, kept: int) -> None:
    boundaries = OnTriples(hard_samples=hard)
    make_trainer(boundaries, max_epochs=5).fit(Scripted(plain_net()), stream([1.0] * 6))
    ((x, *_),) = boundaries.recent_batches
    assert len(x) == len(x.unique(dim=0)) == kept


def test_labels_of_hard_samples_are_looked_at_when_losses_are_read() -> None:
    """Nobody waits for the device to look at those of every batch."""

    class Forgiving(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step([batch[0], batch[1].clamp(max=CLASSES - 1), batch[2]], batch_idx)

    for wrong, refused in ((2, False), (4, True)):
        data = stream([1.0] * 5)
        data.dataset.tensors[1][4 * wrong] = CLASSES
        fit = make_trainer(OnTriples(hard_samples=3, check_every_n_batches=5)).fit
        with pytest.raises(ValueError, match="label 3 is none of 3 classes") if refused else nullcontext():
            fit(Forgiving(plain_net()), data)


def test_samples_of_equal_loss_are_all_held() -> None:
    """As those of a network whose logits are rounded to half precision, or all zero."""
    net = plain_net()
    nn.init.zeros_(net[2].weight)
    nn.init.zeros_(net[2].bias)
    boundaries = OnTriples(hard_samples=10)
    model = Scripted(net, lambda p: torch.optim.SGD(p, lr=0.0))
    make_trainer(boundaries, max_epochs=2).fit(model, stream([1.0] * 6))
    assert len(boundaries._hard[0].unique(dim=0)) > 5


def test_hard_samples_need_one_shape() -> None:
    class Tokens(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x[:, :FEATURES])

    class Batches:
        def __iter__(self) -> Any:
            return iter((torch.randn(4, FEATURES + k), torch.zeros(4).long()) for k in range(3))

    with pytest.raises(ValueError, match="pad them to one length"):
        make_trainer(PlateauBoundaries(hard_samples=3)).fit(Tokens(plain_net()), Batches())


def test_batches_that_are_skipped_are_passed_over() -> None:
    class Skipping(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx % 3 == 1 else super().training_step(batch, batch_idx).view(1)

    boundaries = PlateauBoundaries(check_every_n_batches=1)
    make_trainer(boundaries).fit(Skipping(plain_net()), stream(HEIGHTS))
    assert boundaries.task == 2


def test_keeping_hard_samples_does_not_disturb_the_training() -> None:
    found = []
    for hard in (0, 5):
        torch.manual_seed(0)
        model = Scripted()
        make_trainer(OnTriples(hard_samples=hard)).fit(model, stream(HEIGHTS))
        found.append(weights(model))
    assert torch.equal(*found)


def test_task_free_mas() -> None:
    class TaskFree(MAS):
        def outputs(self, pl_module: Any, batch: Any) -> Any:
            return pl_module(batch[0]), batch[1]

    rule = TaskFree(1.0, norm="l2", decay="mean")
    make_trainer(rule, OnTriples(hard_samples=10, check_every_n_batches=1)).fit(
        Scripted(plain_net()), stream(HEIGHTS)
    )
    assert rule.tasks == 2
    assert all(t.sum() > 0 for t in rule.synapses.view["importance"])


def test_resume_is_bit_identical(tmp_path: Path) -> None:
    """A plateau of which a part comes after the checkpoint."""

    def run(epochs: int, resumed: Path | None = None) -> tuple[Any, ...]:
        torch.manual_seed(0)
        model, rule = Net(plain_net()), SynapticIntelligence(1.0)
        boundaries = PlateauBoundaries(Plateau(level=0.9), check_every_n_batches=4, hard_samples=5)
        saving = ModelCheckpoint(tmp_path / str(epochs), save_last=True, save_top_k=0)
        trainer = make_trainer(rule, boundaries, saving, max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(model, loader(*task(0)), ckpt_path=resumed, weights_only=True)
        return model, rule, boundaries

    model, rule, boundaries = run(30)
    assert rule.tasks > 0
    run(3)
    again, resumed, continued = run(30, tmp_path / "3" / "last.ckpt")
    assert torch.equal(weights(model), weights(again))
    assert resumed.tasks == rule.tasks
    assert continued.detector.state_dict() == boundaries.detector.state_dict()
    assert all(map(torch.equal, continued._hard, boundaries._hard))


def test_losses_that_are_not_finite_are_passed_over() -> None:
    boundaries = PlateauBoundaries(check_every_n_batches=1)
    heights = [h if i % 7 else float("nan") for i, h in enumerate(HEIGHTS)]

    class Skipping(Scripted):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            for p in self.parameters():
                p.grad.nan_to_num_(0.0)

    with pytest.warns(UserWarning, match="passes over values"):
        make_trainer(boundaries).fit(Skipping(plain_net()), stream(heights))
    assert boundaries.task == 2


def test_a_training_step_without_a_loss_is_refused() -> None:
    class Manual(Net):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

    with pytest.raises(MisconfigurationException, match="training_step of Manual returns none"):
        make_trainer(PlateauBoundaries()).fit(Manual(), loader(*task(0)))


def test_hard_samples_need_readable_batches() -> None:
    with pytest.raises(TypeError, match="override `outputs"):
        make_trainer(PlateauBoundaries(hard_samples=5)).fit(Scripted(plain_net()), stream(HEIGHTS))
    x = torch.randn(8, FEATURES)

    class Unlabelled(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch).square().mean()

    with pytest.raises(ValueError, match="needs its label"):
        make_trainer(PlateauBoundaries(hard_samples=5)).fit(
            Unlabelled(), torch.utils.data.DataLoader(x, batch_size=4)
        )


@pytest.mark.parametrize(
    "arguments", [{"check_every_n_batches": 0}, {"recent_samples": 0}, {"hard_samples": -1}]
)
def test_arguments_that_cannot_work(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        PlateauBoundaries(**arguments)
