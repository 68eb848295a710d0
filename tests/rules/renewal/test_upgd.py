"""UPGD against a plain loop, and what it takes of the optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks import EWC, UPGD, L2Init
from cl_callbacks.tensors.random_numbers import Draws
from tests.references.renewal import upgd
from tests.small import CLASSES, Net, fit_tasks, loader, make_trainer, plain_net, task, weights


class Scripted(LightningModule):
    """A loss whose gradient is given for each step."""

    def __init__(self, start: Tensor, gradients: Tensor, lr: float = 0.1) -> None:
        super().__init__()
        cut = len(start) // 2  # two tensors: the maximum is over both
        self.first, self.second = nn.Parameter(start[:cut].clone()), nn.Parameter(start[cut:].clone())
        self.gradients, self.lr = gradients, lr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.cat([self.first, self.second]) @ self.gradients[batch_idx]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def scripted(start: Tensor, gradients: Tensor, rule: UPGD) -> Tensor:
    model = Scripted(start.double(), gradients.double())
    make_trainer(rule).fit(model, loader(torch.zeros(len(gradients), 1), batch_size=1))
    return weights(model)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.9999])
@pytest.mark.parametrize(("noise", "weight_decay"), [(0.0, 0.0), (0.3, 0.2)])
def test_equals_a_plain_loop(decay: float, noise: float, weight_decay: float) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(6), torch.randn(12, 6)
    found = scripted(start, gradients, UPGD(decay, noise, weight_decay))
    halves = list(start.double().split(3))
    draws = Draws(Tensor.normal_, halves, halves)
    noises = []
    for number in range(12):
        draws.draw(0, number)
        noises.append(torch.cat([draws[half] for half in halves]).tolist())
    expected = upgd(
        start.double().tolist(), gradients.double().tolist(), noises, 0.1, decay, noise, weight_decay
    )
    assert found.tolist() == pytest.approx(expected, rel=0, abs=1e-10)


def test_the_first_step_is_not_saturated() -> None:
    """As it is where the utility's start at 0 is corrected in the numerator alone."""
    start, gradients = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([[-1.0, -0.5, 0.0, 0.4]])
    rule = UPGD(0.999, noise=0.0, weight_decay=0.0)
    moved = scripted(start, gradients, rule) - start
    gates = 1 - torch.sigmoid(torch.tensor([1.0, 0.5, 0.0, -0.4], dtype=torch.float64))
    torch.testing.assert_close(moved, -0.1 * gradients[0].double() * gates, rtol=0, atol=1e-7)
    view = rule.synapses.view
    torch.testing.assert_close(torch.cat(rule.plasticity(view, [0.1, 0.1])), gates, rtol=0, atol=1e-7)
    assert gates.min() == pytest.approx(0.27, abs=0.005) and gates.max() == pytest.approx(0.60, abs=0.005)


@pytest.mark.parametrize("start", [[0.0, 0.0], [1.0, 2.0]])
def test_without_any_utility_above_zero_a_step_is_half_of_that_of_gradient_descent(
    start: list[float],
) -> None:
    """Exactly, whether all utilities are 0 or below it."""
    gradients = torch.tensor([[0.3, 0.7]])
    found = scripted(torch.tensor(start), gradients, UPGD(noise=0.0, weight_decay=0.0))
    expected = torch.tensor(start).double() - 0.5 * (0.1 * gradients[0].double())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-16)


def test_the_learning_rate_is_that_of_the_optimizer_with_its_schedule() -> None:
    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            groups = [{"params": self.net[0].parameters(), "lr": 0.2}, {"params": self.net[2].parameters()}]
            optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    torch.manual_seed(0)
    model = Scheduled(plain_net().double())
    twin = [p.detach().clone().requires_grad_() for p in model.parameters()]
    x, y = task(0)
    make_trainer(UPGD(0.5, 0.0, 0.3)).fit(model, loader(x.double(), y))
    utility = [torch.zeros_like(p) for p in twin]
    for t, rate in enumerate([1.0, 1.0, 0.1], 1):
        inputs, labels = x.double()[8 * t - 8 : 8 * t], y[8 * t - 8 : 8 * t]
        hidden = torch.tanh(inputs @ twin[0].T + twin[1])
        gradients = torch.autograd.grad(F.cross_entropy(hidden @ twin[2].T + twin[3], labels), twin)
        with torch.no_grad():
            utility = [0.5 * u - 0.5 * g * p for u, g, p in zip(utility, gradients, twin, strict=True)]
            largest = max(u.max() for u in utility)
            for p, g, u, lr in zip(twin, gradients, utility, [0.2, 0.2, 0.1, 0.1], strict=True):
                p.copy_((1 - lr * rate * 0.3) * p - lr * rate * g * torch.sigmoid(-u / largest))
    torch.testing.assert_close(weights(model), torch.cat([p.flatten() for p in twin]), rtol=0, atol=1e-12)


def test_it_is_said_what_of_the_optimizer_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    adam = Net(plain_net(), lambda p: torch.optim.AdamW(p, lr=1e-2))
    fit_tasks(adam, UPGD(), tasks=2, gradient_clip_val=1.0)
    said = [
        record.message for record in caplog.records if "replaces the optimizer's update" in record.message
    ]
    assert len(said) == 1 and "the moments of AdamW, its weight_decay, clipping" in said[0]
    caplog.clear()
    fit_tasks(Net(plain_net(), lambda p: torch.optim.SGD(p, lr=1e-2)), UPGD(), tasks=1)
    assert "replaces the optimizer's update" not in caplog.text


def test_pulls_of_other_rules_move_weights_and_are_no_utility() -> None:
    start, gradients = torch.tensor([1.0, -1.0]), torch.tensor([[-1.0, 0.5], [-1.0, 0.5]])
    utilities = []
    for callbacks in ([], [L2Init(0.5)]):
        rule = UPGD(0.0, 0.0, 0.0)
        model = Scripted(start.double(), gradients.double())
        make_trainer(rule, *callbacks).fit(model, loader(torch.zeros(2, 1), batch_size=1))
        utilities.append((weights(model), torch.cat(rule.synapses.view["utility"])))
    theta = start.double()
    for step in range(2):
        utility = -gradients[step].double() * theta
        pulled = gradients[step].double() + (theta - start)
        theta = theta - 0.1 * pulled * torch.sigmoid(-utility / utility.max())
    torch.testing.assert_close(utilities[1][0], theta, rtol=0, atol=1e-12)
    torch.testing.assert_close(utilities[1][1], utility, rtol=0, atol=1e-12)
    assert not torch.equal(utilities[0][0], utilities[1][0])


def test_it_may_stand_beside_a_memory(recwarn: pytest.WarningsRecorder) -> None:
    fit_tasks(Net(plain_net()), UPGD(), EWC(), tasks=2)
    assert not any("counts twice" in str(warning.message) for warning in recwarn)


class Grown(Net):
    """A layer is added before the second task."""

    def forward(self, x: Tensor) -> Tensor:
        found = self.net(x)
        return self.head(found) if hasattr(self, "head") else found


def test_a_head_that_comes_later_counts_its_own_steps() -> None:
    """Its utility is corrected for its own start at 0, not for that of older weights."""
    model, rule = Grown(plain_net()), UPGD(0.9, 0.0)
    make_trainer(rule).fit(model, loader(*task(0)))
    model.head = nn.Linear(CLASSES, CLASSES)
    make_trainer(rule).fit(model, loader(*task(1)))
    assert rule.steps["head.weight"] == 3 and rule.steps["net.0.weight"] == 6
