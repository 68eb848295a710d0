"""L2-Init: where it ends on a quadratic loss, and what it does with weights that come later."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from cl_callbacks import BGD, EWC, L2SP, EpochBoundaries, L2Init
from cl_callbacks.retention.strengthening import rules_to_strengthen
from cl_callbacks.tuning.strength_finder import _rules
from tests.small import CLASSES, FEATURES, Net, fit_tasks, loader, make_trainer, plain_net, task, weights


class Quadratic(LightningModule):
    """The loss ½(θ−c)ᵀA(θ−c), with another minimum c in each task."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        self.curvature = root @ root.T + torch.eye(4, dtype=torch.float64)
        self.minima = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        self.theta = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))
        self.start = self.theta.detach().clone()
        self.ends: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        away = self.theta - self.minima[len(self.ends)]
        return 0.5 * away @ self.curvature @ away

    def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.ends.append(self.theta.detach().clone())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


@pytest.mark.parametrize("proximal", [False, True])
def test_the_weights_of_every_task_end_between_its_minimum_and_the_start(proximal: bool) -> None:
    model, strength = Quadratic(), 0.7
    steps = torch.zeros(400, 1)
    rule = L2Init(strength, proximal=proximal)
    make_trainer(rule, EpochBoundaries(1), max_epochs=3).fit(model, loader(steps, batch_size=1))
    stiff = model.curvature + 2 * strength * torch.eye(4, dtype=torch.float64)
    assert len(model.ends) == 3
    for end, minimum in zip(model.ends, model.minima, strict=True):
        expected = torch.linalg.solve(stiff, model.curvature @ minimum + 2 * strength * model.start)
        torch.testing.assert_close(end, expected, rtol=0, atol=1e-10)
    away = (model.theta.detach() - model.start).square().sum()
    torch.testing.assert_close(rule.penalty(rule.synapses.view), strength * away)


def test_it_is_l2sp_to_the_start_with_twice_its_strength() -> None:
    found = []
    for rule in (L2Init(0.3), L2SP(0.6, to="start")):
        torch.manual_seed(0)
        model = Net(plain_net())
        fit_tasks(model, rule, tasks=2)
        found.append(weights(model))
    assert torch.equal(*found)


def test_outputs_that_come_later_are_pulled_to_what_they_came_with() -> None:
    model, rule = Net(nn.Linear(FEATURES, CLASSES)), L2Init(0.1)
    make_trainer(rule).fit(model, loader(*task(0)))
    grown = nn.Linear(FEATURES, CLASSES + 2)
    came = grown.weight.detach().clone()[CLASSES:]
    with torch.no_grad():
        grown.weight[:CLASSES] = model.net.weight
    first = rule.synapses.view["anchor"][0].clone()
    model.net = grown
    make_trainer(rule).fit(model, loader(*task(1)))
    anchor = rule.synapses.view["anchor"][0]
    assert torch.equal(anchor[:CLASSES], first) and torch.equal(anchor[CLASSES:], came)
    assert all((found == 1).all() for found in rule.synapses.view["importance"])


@pytest.mark.parametrize("other", [EWC, BGD])
def test_no_second_memory_is_said_of_it(other: Any, recwarn: pytest.WarningsRecorder) -> None:
    fit_tasks(Net(plain_net()), L2Init(0.1), other(), tasks=1)
    assert not any("counts twice" in str(warning.message) for warning in recwarn)


def test_who_holds_on_to_old_tasks_by_strengths_leaves_it_alone() -> None:
    """Unless it is named."""
    trainer = make_trainer(EWC(), L2Init())
    assert [rule.name for rule in _rules(trainer)] == ["ewc"]
    assert list(rules_to_strengthen(trainer, None, "guard")) == ["ewc"]
    assert list(rules_to_strengthen(trainer, ["l2_init"], "guard")) == ["l2_init"]


def test_it_is_not_said_of_a_weak_one_that_it_protects_nothing() -> None:
    with pytest.warns(UserWarning, match=r"L2Init hardly does anything: .* at most; try strength="):
        fit_tasks(Net(plain_net()), L2Init(1e-5), tasks=2, max_epochs=5)
