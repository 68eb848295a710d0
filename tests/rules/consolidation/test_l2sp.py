"""L2-SP against a plain loop, and what it leaves alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks import L2SP
from tests.small import CLASSES, FEATURES, Net, loader, make_trainer, plain_net, task, weights


def net() -> nn.Module:
    torch.manual_seed(0)
    return plain_net().double()


def fit(model: Net, rule: L2SP, tasks: int = 2) -> None:
    trainer = make_trainer(rule, max_epochs=2)
    for index in range(tasks):
        x, y = task(index)
        trainer.fit(model, loader(x.double(), y))
        trainer.fit_loop.max_epochs += 2


def loop(to: str, proximal: bool, strength: float, lr: float = 0.1) -> Tensor:
    model = net()
    parameters = list(model.parameters())
    anchor = [p.detach().clone() for p in parameters]
    for index in range(2):
        x, y = task(index)
        pulls = strength if index or to == "start" else 0.0
        for batch in 2 * [slice(0, 8), slice(8, 16), slice(16, 24)]:
            gradients = torch.autograd.grad(F.cross_entropy(model(x.double()[batch]), y[batch]), parameters)
            with torch.no_grad():
                for p, g, a in zip(parameters, gradients, anchor, strict=True):
                    if proximal:
                        p.sub_(lr * g)
                        p.copy_((p + lr * pulls * a) / (1 + lr * pulls))
                    else:
                        p.sub_(lr * (g + pulls * (p - a)))
        if to == "last_task":
            anchor = [p.detach().clone() for p in parameters]
    return weights(model)


@pytest.mark.parametrize("to", ["last_task", "start"])
@pytest.mark.parametrize("proximal", [False, True])
def test_equals_a_plain_loop(to: Any, proximal: bool) -> None:
    model = Net(net(), lambda p: torch.optim.SGD(p, lr=0.1))
    rule = L2SP(2.0, to=to, proximal=proximal)
    fit(model, rule)
    torch.testing.assert_close(weights(model), loop(to, proximal, 2.0), rtol=0, atol=1e-12)
    distance = weights(model) - torch.cat([a.flatten() for a in rule.synapses.view["anchor"]])
    assert distance.any() == (to == "start")  # the last task's weights are the anchor now
    torch.testing.assert_close(rule.penalty(rule.synapses.view), distance.square().sum())


class Masked(Net):
    """One head of which each task uses outputs of its own."""

    def __init__(self, optimizer: Any = None) -> None:
        net = nn.Linear(FEATURES, 2 * CLASSES).double()
        super().__init__(net, optimizer or partial(torch.optim.AdamW, lr=0.01))
        self.index = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, CLASSES * self.index : CLASSES * (self.index + 1)]

    def on_task_start(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.index = task


def test_outputs_that_no_task_has_trained_are_not_pulled_to_their_random_start() -> None:
    """Although weight decay has moved them."""
    torch.manual_seed(0)
    model, rule = Masked(), L2SP(1.0)
    before = model.net.weight.detach().clone()
    fit(model, rule, tasks=1)
    assert not torch.equal(before[CLASSES:], model.net.weight[CLASSES:])
    (importance, _) = rule.synapses.view["importance"]
    assert (importance[:CLASSES] == 1).all() and (importance[CLASSES:] == 0).all()
    fit(model, rule, tasks=1)  # the second task
    assert all((found == 1).all() for found in rule.synapses.view["importance"])


def test_outputs_that_rest_in_a_task_are_still_pulled_to_what_they_were() -> None:
    """Without decay they do not move in it at all."""
    model, rule = Masked(partial(torch.optim.SGD, lr=0.1)), L2SP(1.0)
    fit(model, rule, tasks=1)
    learned = model.net.weight[:CLASSES].detach().clone()
    fit(model, rule, tasks=1)
    assert torch.equal(model.net.weight[:CLASSES], learned)
    assert all((found == 1).all() for found in rule.synapses.view["importance"])


def test_weights_that_were_not_there_at_the_start_are_left_alone() -> None:
    """A head that has grown, with to="start"."""
    model, rule = Net(nn.Linear(FEATURES, CLASSES).double()), L2SP(1.0, to="start")
    fit(model, rule, tasks=1)
    grown = nn.Linear(FEATURES, CLASSES + 2).double()
    with torch.no_grad():
        grown.weight[:CLASSES] = model.net.weight
    model.net = grown
    trainer = make_trainer(rule, max_epochs=1)
    x, y = task(1)
    trainer.fit(model, loader(x.double(), y))
    (importance, _) = rule.synapses.view["importance"]
    assert (importance[:CLASSES] == 1).all() and (importance[CLASSES:] == 0).all()


def test_nothing_is_missed_without_a_boundary_if_the_start_is_the_anchor() -> None:
    assert L2SP().waits_for_a_task and not L2SP(to="start").waits_for_a_task


def test_an_anchor_that_there_is_none_of() -> None:
    with pytest.raises(ValueError, match="to must be 'last_task' or 'start'"):
        L2SP(to="best")  # type: ignore[arg-type]
