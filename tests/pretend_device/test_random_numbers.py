"""Random numbers of a training on a device: which generators are seeded, restored, and in which thread."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from cl_callbacks import EWC, SeedEpochs
from cl_callbacks.tensors import random_numbers
from cl_callbacks.tensors.random_numbers import Draws, numbered_generator
from cl_callbacks.training.generators import isolated_rng
from cl_callbacks.training.quiet import quiet
from tests.every_rule import OWNING
from tests.pretend_device.collectives import PretendDDP
from tests.pretend_device.device import DEVICE, trainer_on, waits
from tests.processes import train_together
from tests.small import Net, loader, make_trainer, plain_net, task, weights

PLACES = ("cpu", f"{DEVICE}:0", f"{DEVICE}:1")


def next_numbers() -> list[float]:
    """What each generator draws next, on the CPU and on both devices; they draw it again afterwards."""
    states = torch.get_rng_state(), *(torch.pretend.get_rng_state(i) for i in range(2))  # type: ignore[attr-defined]
    found = [torch.rand((), device=place).item() for place in PLACES]
    torch.set_rng_state(states[0])
    for i in range(2):
        torch.pretend.set_rng_state(states[1 + i], i)  # type: ignore[attr-defined]
    return found


class AtBatch(Callback):
    """Calls something once."""

    def __init__(self, action: Any) -> None:
        self.action, self.called = action, False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self.called:
            self.called = True
            self.action(trainer, pl_module)


def at_batch(action: Any, index: int = 0) -> None:
    once = AtBatch(action)
    trainer_on(once, index=index).fit(Net(), loader(*task(0)))
    assert once.called


@pytest.mark.parametrize("index", [0, 1])
def test_a_pass_without_a_trace_leaves_all_generators(index: int) -> None:
    def action(trainer: Any, pl_module: Any) -> None:
        before, waited = next_numbers(), waits()
        with pytest.raises(KeyError), isolated_rng(trainer, pl_module):
            torch.manual_seed(3)
            for place in PLACES:
                torch.rand(5, device=place)
            raise KeyError
        assert waits() == waited
        assert next_numbers() == before

    at_batch(action, index)


def test_a_pass_without_a_trace_seeds_only_the_device_in_use() -> None:
    def action(trainer: Any, pl_module: Any) -> None:
        before = next_numbers()
        found = []
        for seed in (1, 1, 2):
            with quiet(trainer, pl_module, seed):
                found.append(next_numbers())
                torch.rand(5, device=PLACES[1])
        assert found[0] == found[1]
        assert [a != b for a, b in zip(found[0], found[2], strict=True)] == [True, False, True]
        assert found[0][1] == before[1]
        assert next_numbers() == before

    at_batch(action, index=1)


class Spread(Net):
    """A layer of it is on the other device."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 3))
        self.elsewhere = nn.Linear(2, 2)

    def configure_model(self) -> None:
        self.net.to(PLACES[1])

    def on_fit_start(self) -> None:
        self.elsewhere.to(PLACES[2])


def test_epochs_seed_all_devices_of_the_weights() -> None:
    drawn: list[list[float]] = []

    class Draw(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            drawn.append(next_numbers())

    for before in (1, 2):
        torch.manual_seed(before)
        trainer_on(SeedEpochs(), Draw(), limit_train_batches=1).fit(Spread(), loader(*task(0)))
    assert drawn[0] == drawn[1]


def test_labels_that_a_rule_draws_are_those_of_its_seed_and_leave_dropout_as_it_was() -> None:
    class Numbers(Callback):
        def __init__(self) -> None:
            self.found: list[list[float]] = []

        def on_train_epoch_end(self, *args: Any) -> None:
            self.found.append(next_numbers())

    importances, numbers = [], []
    for rule in (True, True, False):
        torch.manual_seed(0)
        ewc, after = EWC(estimator="sampled", name="fisher"), Numbers()
        trainer_on(*[ewc] * rule, after, max_epochs=2).fit(Net(), loader(*task(0)))
        numbers.append(after.found)
        if rule:
            importances.append(ewc.synapses.state_dict()["importance"]["net.0.weight"].cpu())
    assert numbers[0] == numbers[2]
    assert torch.equal(*importances)


def test_devices_are_filled_in_the_calling_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_numbers, "PIECE", 4)
    threads: list[tuple[str, bool]] = []

    def fill(tensor: Tensor, generator: torch.Generator) -> Tensor:
        assert generator.device == tensor.device
        threads.append((str(tensor.device), threading.current_thread() is threading.main_thread()))
        return tensor.uniform_(generator=generator)

    weights = [torch.zeros(8, device=place) for place in PLACES]
    draws = Draws(fill, weights, weights)
    draws.draw(3, 5)
    assert set(threads) == {(PLACES[0], False), (PLACES[1], True), (PLACES[2], True)}
    on_cpu, *others = (draws[weight] for weight in weights)
    for k, (found, place) in enumerate(zip(others, PLACES[1:], strict=True)):
        generator = numbered_generator(3, 5, torch.device(place), 2 + k)
        assert torch.equal(found, torch.zeros(8, device=place).uniform_(generator=generator))
    assert on_cpu.all()


def test_devices_are_filled_on_the_stream_of_the_caller() -> None:
    weight, stream = torch.zeros(8, device=DEVICE), torch.Stream(DEVICE)
    other = torch.zeros(8, device=PLACES[2])
    draws = Draws(Tensor.normal_, [weight, other], [weight, other])
    stream.wait_stream(torch.accelerator.current_stream())
    with stream:
        draws.draw(0, 0)
        draws[weight].add_(1)  # a race if another stream had filled it
    torch.accelerator.current_stream().wait_stream(stream)


class Waited(Callback):
    """Remembers how often the host had waited before the third step."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            self.before = waits()


def fit_together(rank: int, rule: str, unlike: bool) -> tuple[Tensor, int]:
    """Weights after a fit with another process, and how often the host has waited from its third step on."""
    if rank and unlike:  # this GPU is of another model

        def numbered_otherwise(seed: int, *numbers: Any) -> torch.Generator:
            return numbered_generator(seed + 1, *numbers)

        random_numbers.numbered_generator = numbered_otherwise
    else:
        random_numbers.numbered_generator = numbered_generator
    torch.manual_seed(0)
    model, waited = Net(plain_net()), Waited()
    trainer = make_trainer(
        OWNING[rule](), waited, accelerator="auto", devices=2, strategy=PretendDDP(), max_epochs=4
    )
    trainer.fit(model, loader(*task(0)))
    return weights(model.cpu()), waits() - waited.before


def together(rank: int, folder: Path) -> None:
    found = {
        (rule, unlike): fit_together(rank, rule, unlike)
        for rule in ("mesu", "cascade")
        for unlike in (False, True)
    }
    torch.save(found, folder / f"{rank}.pt")


def test_the_first_process_draws_for_unlike_devices_without_a_wait(tmp_path: Path) -> None:
    train_together(2, together, tmp_path)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for rule in ("mesu", "cascade"):
        alike, waited = one[rule, False]
        for found in (one, other):
            trained, also_waited = found[rule, True]
            assert torch.equal(trained, alike)
            assert also_waited == waited
