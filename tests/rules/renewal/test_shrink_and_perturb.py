"""Shrinking and noise against a plain loop, and when it happens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from cl_callbacks import (
    EWC,
    Cascade,
    EpochBoundaries,
    FitBoundaries,
    ShrinkAndPerturb,
    SynapticIntelligence,
)
from cl_callbacks.tensors.random_numbers import Draws
from tests.references.renewal import shrunk_and_perturbed
from tests.small import Net, fit_tasks, loader, make_trainer, plain_net, task, weights


def standing(learning_rate: float = 0.0) -> Net:
    """A network that does not move by itself."""
    torch.manual_seed(0)
    return Net(plain_net().double(), lambda p: torch.optim.SGD(p, lr=learning_rate))


def fit(model: Net, *callbacks: Callback, epochs: int = 3) -> None:
    x, y = task(0)
    make_trainer(*callbacks, max_epochs=epochs).fit(model, loader(x.double(), y))


def drawn(model: Net, number: int) -> list[Tensor]:
    parameters = list(model.parameters())
    draws = Draws(Tensor.normal_, parameters, parameters)
    draws.draw(0, number)
    return [draws[p].clone() for p in parameters]


@pytest.mark.parametrize("unit", ["initial_std", "absolute"])
@pytest.mark.parametrize("every", [None, 1, 2])
def test_equals_a_plain_loop(unit: Any, every: int | None) -> None:
    """Three tasks of three steps each, in which the optimizer moves nothing."""
    model = standing()
    start = [p.detach().clone() for p in model.parameters()]
    rule = ShrinkAndPerturb(0.8, 0.3, every_n_steps=every, noise_unit=unit)
    fit(model, rule, EpochBoundaries(1))
    times = {None: 2, 1: 9, 2: 4}[every]
    noise = [drawn(model, number) for number in range(times)]
    scales = [p.std(unbiased=False).item() if unit == "initial_std" else 1.0 for p in start]
    expected = shrunk_and_perturbed(start, noise, 0.8, [0.3 * s for s in scales])
    for found, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), value, rtol=0, atol=1e-12)
    assert rule.draws == times


def test_in_every_step_weights_end_with_the_spread_of_the_noise() -> None:
    r"""The variance tends to :math:`\sigma^2/(1-a^2)`."""
    model = Net(nn.Linear(6, 3000, bias=False), lambda p: torch.optim.SGD(p, lr=0.0))
    torch.nn.init.normal_(model.net.weight, std=5.0)
    x, y = task(0)
    rule = ShrinkAndPerturb(0.9, 0.1, every_n_steps=1)
    make_trainer(rule, max_epochs=40).fit(model, loader(x, y))
    std = 0.1 * rule.initial_stds["net.weight"] / math.sqrt(1 - 0.81)
    assert model.net.weight.std().item() == pytest.approx(std, rel=0.03)


def test_tensors_without_a_spread_get_no_noise() -> None:
    model = Net(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)).double(), lambda p: torch.optim.SGD(p, 0.0))
    fit(model, ShrinkAndPerturb(0.5, 1.0), EpochBoundaries(1), epochs=2)
    assert (model.net[0].weight == 0.5).all() and not model.net[0].bias.any()


class Seen(Callback):
    """Notes the weights at the events of tasks."""

    def __init__(self) -> None:
        self.at: dict[str, Tensor] = {}

    def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.at[f"end {task}"] = weights(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.at.setdefault(f"start {trainer.current_epoch}", weights(pl_module))


def test_the_end_of_a_task_is_of_the_weights_that_have_learned_it() -> None:
    """And the first task begins and the last one ends with weights that are left alone."""
    model, seen, ewc = standing(0.1), Seen(), EWC(0.0)
    start = weights(model)
    fit(model, ShrinkAndPerturb(0.5, 0.0), seen, ewc, EpochBoundaries(1))
    assert torch.equal(seen.at["start 0"], start)
    for task_index in (1, 2):
        assert torch.equal(seen.at[f"start {task_index}"], 0.5 * seen.at[f"end {task_index - 1}"])
    assert torch.equal(weights(model), seen.at["end 2"])
    anchor = torch.cat([a.flatten() for a in ewc.synapses.view["anchor"]])
    assert torch.equal(anchor, seen.at["end 2"])


class Distances(Callback):
    """Notes how far weights are from where the path of their task begins, before its first step."""

    def __init__(self, rule: SynapticIntelligence) -> None:
        self.rule = rule
        self.found: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            view = self.rule.synapses.view
            (field,) = self.rule.follows
            apart = torch._foreach_sub(view[field], view.parameters)
            self.found.append(max(t.abs().max().item() for t in apart))


def test_the_path_of_a_task_begins_after_the_weights_were_shrunk() -> None:
    model, si = standing(0.1), SynapticIntelligence(1.0)
    distances = Distances(si)
    fit(model, si, distances, ShrinkAndPerturb(0.5, 0.5), EpochBoundaries(1))
    assert distances.found == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)


def test_a_boundary_between_two_fits_that_a_checkpoint_joins(tmp_path: Path) -> None:
    """Saved at the end of a task, the weights are those that learned it; what is due comes after loading."""

    def run(fits: int, resumed: Path | None = None) -> tuple[Net, ShrinkAndPerturb]:
        torch.manual_seed(0)
        model, rule = Net(plain_net()), ShrinkAndPerturb(0.5, 0.2)
        saving = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1)
        trainer = make_trainer(rule, EpochBoundaries(1), saving, max_epochs=fits, enable_checkpointing=True)
        trainer.fit(model, loader(*task(0)), ckpt_path=resumed, weights_only=True)
        return model, rule

    whole, rule = run(2)
    again, other = run(2, tmp_path / "epoch=0.ckpt")
    assert torch.equal(weights(whole), weights(again))
    assert rule.state_dict() == other.state_dict() and rule.draws == 1


def test_a_new_one_for_each_fit_renews_nothing_and_says_so() -> None:
    model = standing(0.1)
    x, y = task(0)
    for each in range(2):
        trainer = make_trainer(ShrinkAndPerturb())
        if each:
            with pytest.warns(UserWarning, match="to this one it is the first task"):
                trainer.fit(model, loader(x.double(), y))
        else:
            trainer.fit(model, loader(x.double(), y))


def test_with_a_number_of_steps_it_waits_for_no_task() -> None:
    assert ShrinkAndPerturb().waits_for_a_task
    assert not ShrinkAndPerturb(every_n_steps=5).waits_for_a_task


def test_half_of_a_task_is_not_renewed_when_it_is_resumed(tmp_path: Path) -> None:
    model, rule = standing(), ShrinkAndPerturb(0.5, 0.0)
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    x, y = task(0)
    data = loader(x.double(), y)
    make_trainer(rule, EpochBoundaries(2), saving, max_epochs=4, enable_checkpointing=True).fit(model, data)
    again = standing(1e-9)
    resumed = ShrinkAndPerturb(0.5, 0.0)
    make_trainer(resumed, EpochBoundaries(2), max_epochs=4).fit(
        again, data, ckpt_path=tmp_path / "step=8.ckpt", weights_only=True
    )
    torch.testing.assert_close(weights(again), weights(model), rtol=0, atol=1e-6)


def test_another_seed_draws_other_noise() -> None:
    found = []
    for seed in (0, 0, 1):
        model = standing()
        fit(model, ShrinkAndPerturb(1.0, 0.3, seed=seed), EpochBoundaries(1))
        found.append(weights(model))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize("every", [None, 1])
def test_torch_s_own_random_numbers_are_left_alone(every: int | None) -> None:
    states = []
    for rule in (FitBoundaries(), ShrinkAndPerturb(0.9, 0.1, every_n_steps=every)):
        fit_tasks(Net(plain_net()), rule, tasks=2)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_binary_weights_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="none of the values that Cascade"):
        fit_tasks(Net(plain_net()), ShrinkAndPerturb(), Cascade(), tasks=1)


def test_it_is_said_that_half_precision_loses_small_steps() -> None:
    with pytest.warns(UserWarning, match="smaller than the rounding"):
        fit_tasks(Net(plain_net()), ShrinkAndPerturb(0.999, every_n_steps=1), tasks=1, precision="bf16-true")
