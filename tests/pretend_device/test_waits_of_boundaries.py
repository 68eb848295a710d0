"""How often the host waits for the device where boundaries read something of each batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from cl_callbacks import MESU, BatchBoundaries, PlateauBoundaries, SynapticIntelligence
from cl_callbacks.tensors.containers import moved
from cl_callbacks.training.fit_end import weight_norms
from tests.pretend_device.counts import Numbered, Waits
from tests.pretend_device.device import DEVICE, trainer_on, waits
from tests.small import Net, loader, make_trainer, plain_net, task

BATCHES, SIZE = 40, 8


class Tasks(Callback):
    def __init__(self) -> None:
        self.ended: list[tuple[int, int]] = []

    def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.ended.append((task, trainer.global_step))


class Augmenting(Numbered):
    """Changes batches on the device, and puts the number last."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * 1.0, *batch[1:], batch[2] + 1]


class Arriving:
    """A loader whose batches are on the device already."""

    def __init__(self, batches: Any) -> None:
        self.batches = [moved(batch, torch.device(DEVICE)) for batch in batches]

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def numbered() -> Any:
    numbers = torch.arange(BATCHES * SIZE) // (BATCHES * SIZE // 2)
    return loader(*task(0, samples=BATCHES * SIZE), numbers, batch_size=SIZE)


@pytest.mark.parametrize("kind", ["on the CPU", "augmented", "on the device"])
def test_the_number_of_a_batch_is_read_before_it_is_moved(kind: str) -> None:
    seen, tasks = Waits(), Tasks()
    model = (Augmenting if kind == "augmented" else Numbered)(plain_net())
    data = Arriving(numbered()) if kind == "on the device" else numbered()
    key = 3 if kind == "augmented" else 2
    trainer = trainer_on(seen, SynapticIntelligence(1.0), BatchBoundaries(key), tasks)
    trainer.fit(model, data)
    first = int(kind == "augmented")
    assert tasks.ended == [(first, BATCHES // 2), (first + 1, BATCHES)]
    usual = sorted(seen.found)[len(seen.found) // 2]
    assert usual == (0 if kind == "on the CPU" else 1)
    # Other batches are the first of a task, and those in which the samples of a batch are counted anew.
    assert sum(n != usual for n in seen.found) < 8
    assert "batch_to_device" not in vars(trainer.strategy)


class OnTriples(PlateauBoundaries):
    def outputs(self, pl_module: Any, batch: Any) -> Any:
        return pl_module(batch[0]), batch[1]


def test_hard_samples_wait_only_when_losses_are_read() -> None:
    kept = []
    for make in (make_trainer, trainer_on):
        torch.manual_seed(0)
        seen, boundaries = Waits(), OnTriples(hard_samples=5, check_every_n_batches=4)
        make(seen, SynapticIntelligence(1.0), boundaries).fit(Numbered(plain_net()), numbered())
        ((x, *_),) = boundaries.recent_batches
        kept.append(x.cpu())
    torch.testing.assert_close(*kept)
    at_reads = seen.found[3::4]
    assert all(at_reads)
    others = [n for i, n in enumerate(seen.found) if i % 4 != 3]
    # But for the first batches, in which is tried what will be done and found which weights nobody steps.
    assert not any(others[3:])


def test_several_draws_wait_for_the_loss_scale_no_more_than_training_does() -> None:
    found = []
    for rules in ([], [MESU(50, 0.2, draws=2)]):
        seen = Waits()
        trainer_on(seen, *rules, precision="16-mixed").fit(Numbered(plain_net()), numbered())
        found.append(seen.found[20:30])
    assert found[0] == found[1]


def test_weights_are_compared_in_one_wait() -> None:
    model = Net().to(DEVICE)
    before = waits()
    found = weight_norms(model)
    assert waits() == before + 1
    for name, norm in weight_norms(model.cpu()).items():
        torch.testing.assert_close(found[name], norm)
