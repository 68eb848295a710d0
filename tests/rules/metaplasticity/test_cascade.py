"""Cascades in a Trainer."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_callbacks import Cascade
from cl_callbacks.functional.cascade import switch_probabilities
from cl_callbacks.tensors.random_numbers import numbered_generator
from tests.references.cascade import step as reference_step
from tests.small import CLASSES, Net, fit_tasks, loader, make_trainer, plain_net, task, weights


@pytest.mark.parametrize("lr", [0.3, 3.0])
def test_equals_a_plain_loop_over_synapses(lr: float) -> None:
    """The events are the optimizer's updates in units of the way from one value to the other."""
    steps: list[tuple[list[Tensor], list[Tensor], list[Tensor]]] = []

    class Recording(Cascade):
        def rewrite(self, step: Any) -> None:
            proposed = [w - b for w, b in zip(step.synapses.parameters, step.before, strict=True)]
            levels = [level.clone() for level in step.synapses["level"]]
            super().rewrite(step)
            steps.append((proposed, levels, [level.clone() for level in step.synapses["level"]]))

    model, rule = Net(plain_net(), partial(torch.optim.Adam, lr=lr)), Recording(3, seed=4)
    sizes = [p.detach().abs().mean() for p in (model.net[0].weight, model.net[2].weight)]
    make_trainer(rule, max_epochs=3).fit(model, loader(*task(0)))
    switched = 0
    for number, (proposed, before, after) in enumerate(steps):
        generator = numbered_generator(4, number, torch.device("cpu"))
        uniform = torch.rand(sum(p.numel() for p in proposed), generator=generator).tolist()
        flat = [torch.cat([t.flatten() for t in ts]).tolist() for ts in (proposed, before, after)]
        size = [s.item() for s, p in zip(sizes, proposed, strict=True) for _ in range(p.numel())]
        for delta, old, new, a, u in zip(*flat, size, uniform, strict=True):
            event = max(-1.0, min(1.0, delta / (2 * a)))
            assert new == reference_step(int(old), event, u, 3)
            switched += old * new < 0
    assert len(steps) == 9
    assert switched > 20
    view = rule.synapses.view
    for weight, level, size_of in zip(view.parameters, view["level"], sizes, strict=True):
        torch.testing.assert_close(weight.detach(), size_of * level.sign())
        assert (level.abs() == level.abs().round()).all()
        assert level.abs().max() <= 3


def test_one_level_follows_the_optimizer_on_average() -> None:
    model = Net(nn.Linear(4000, 1), partial(torch.optim.SGD, lr=1.0))
    model.training_step = lambda batch, batch_idx: -0.2 * model.net.weight.sum()  # type: ignore[method-assign]
    rule = Cascade(1)
    with torch.no_grad():
        model.net.weight.abs_().neg_()
        size = model.net.weight.abs().mean().item()
    make_trainer(rule, limit_train_batches=1).fit(model, loader(*task(0)))
    moved = (model.net.weight > 0).float().mean().item() * 2 * size
    assert size * 2 > 0.01
    assert moved == pytest.approx(min(0.2, 2 * size), rel=0.1)


def test_an_update_that_is_no_number_is_no_event() -> None:
    class Broken(Net):
        def on_after_backward(self) -> None:
            self.net[0].weight.grad[0, 0] = math.nan

    model, rule = Broken(plain_net(), partial(torch.optim.SGD, lr=0.1)), Cascade(3)
    sign = torch.where(model.net[0].weight[0, 0] < 0, -1.0, 1.0)
    fit_tasks(model, rule, tasks=1)
    assert weights(model).isfinite().all()
    assert rule.synapses.view["level"][0][0, 0] == sign


def test_biases_stay_with_the_optimizer() -> None:
    model, rule = Net(plain_net()), Cascade(3)
    fit_tasks(model, rule, tasks=1)
    assert rule.synapses.view.names == ["net.0.weight", "net.2.weight"]
    assert len(model.net[0].weight.abs().unique()) <= 2  # rounding
    assert len(model.net[0].bias.abs().unique()) > 2


def test_the_same_seed_gives_the_same_run() -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = Net(plain_net(), partial(torch.optim.Adam, lr=0.1))
        fit_tasks(model, Cascade(3, seed=seed), tasks=1)
        found.append(model.net[0].weight.sign())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_new_rows_get_the_size_of_the_old() -> None:
    model, rule = Net(plain_net(), partial(torch.optim.SGD, lr=0.0)), Cascade(3)
    fit_tasks(model, rule, tasks=1)
    old, level = model.net[2], rule.synapses.view["level"][1]
    size = old.weight.abs().mean().item()
    level[0] *= 3
    before = level.clone()
    model.net[2] = nn.Linear(8, CLASSES + 2)
    with torch.no_grad():
        model.net[2].weight[:CLASSES] = old.weight
    fit_tasks(model, rule, tasks=1)
    torch.testing.assert_close(model.net[2].weight.abs(), torch.full((CLASSES + 2, 8), size))
    assert torch.equal(rule.synapses.view["level"][1][:CLASSES], before)
    assert (rule.synapses.view["level"][1][CLASSES:].abs() == 1).all()


def test_weights_that_others_have_changed_get_two_values_again() -> None:
    """As after an average over weights: signs that have turned begin at the first level."""
    model, rule = Net(plain_net(), partial(torch.optim.SGD, lr=0.0)), Cascade(3)
    fit_tasks(model, rule, tasks=1)
    weight, level = model.net[0].weight, rule.synapses.view["level"][0]
    level *= 2
    turned = torch.zeros_like(level, dtype=torch.bool)
    turned[0] = True
    with torch.no_grad():
        weight.mul_(torch.where(turned, -0.5, 2.0))
    signs, size = weight.sign(), weight.abs().mean().item()
    fit_tasks(model, rule, tasks=1)
    torch.testing.assert_close(weight.detach(), size * signs)
    level = rule.synapses.view["level"][0]
    assert torch.equal(level, signs * torch.where(turned, 1.0, 2.0))


def test_plasticity_is_the_probability_of_a_switch() -> None:
    model, rule = Net(plain_net()), Cascade(3)
    fit_tasks(model, rule, tasks=2)
    view = rule.synapses.view
    for gate, level in zip(rule.plasticity(view, []), view["level"], strict=True):
        q = switch_probabilities(3)
        assert all(g == q[int(abs(k)) - 1] for g, k in zip(gate.flatten(), level.flatten(), strict=True))


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="levels must be a whole number from 1 to 64"):
        Cascade(0)
    with pytest.raises(ValueError, match="ratio must be"):
        Cascade(3, ratio=0.7)
    model = Net(plain_net())
    nn.init.zeros_(model.net[2].weight)
    with pytest.raises(ValueError, match=r"all weights of net\.2\.weight are 0"):
        fit_tasks(model, Cascade(3))
