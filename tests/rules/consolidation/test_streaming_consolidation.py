"""Streaming consolidation against averages in the textbook form."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from cl_callbacks import StreamingConsolidation
from tests.references.ewc import copied
from tests.references.fisher import gradient, trainable
from tests.references.streaming import Streaming
from tests.small import Net, loader, make_trainer, plain_net, task, weights


@pytest.mark.parametrize("importance", ["fisher", "sensitivity", "path"])
@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.1), partial(torch.optim.Adam, lr=0.02)])
@pytest.mark.parametrize("proximal", [False, True])
def test_equals_a_plain_loop(importance: Any, optimizer: Any, proximal: bool) -> None:
    torch.manual_seed(0)
    model = Net(plain_net(), optimizer).double()
    slow = copy.deepcopy(model.net)
    x, y = task(0)
    x = x.double()
    decays = {"importance_decay": 0.8, "anchor_decay": 0.9}
    rule = StreamingConsolidation(
        2.0, measure=importance, damping=0.01, proximal=proximal, **decays, normalize=None
    )
    make_trainer(rule, max_epochs=5).fit(model, loader(x, y))

    parameters = trainable(slow)
    reference = Streaming(parameters, importance, damping=0.01, **decays)
    stepping = optimizer(slow.parameters())
    for _ in range(5):
        for start in range(0, len(x), 8):
            task_gradient = gradient(
                F.cross_entropy(slow(x[start : start + 8]), y[start : start + 8]), parameters
            )
            pull = reference.pull(parameters, 2.0)
            for name, p in parameters.items():
                p.grad = task_gradient[name] + (0.0 if proximal else 1.0) * pull[name]
            before = copied(parameters)
            stepping.step()
            if proximal and reference.steps:
                effective, anchor = reference.effective(parameters), reference.anchor()
                with torch.no_grad():
                    for name, p in parameters.items():
                        stiff = stepping.param_groups[0]["lr"] * 2.0 * effective[name]
                        p.copy_((p + stiff * anchor[name]) / (1 + stiff))
            reference.step(task_gradient, before, copied(parameters))
    torch.testing.assert_close(weights(model), weights(slow), rtol=1e-8, atol=1e-10)
    assert set(rule.steps.values()) == {reference.steps} == {15}
    view = rule.synapses.view
    for found, expected in zip(
        rule.effective_importance(view), reference.effective(parameters).values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)


def test_needs_no_boundary_and_no_data() -> None:
    class Once:
        """A stream that can be read only once."""

        def __iter__(self) -> Any:
            return iter([task(0)])

    model, rule = Net(plain_net()), StreamingConsolidation(1.0, normalize=None)
    make_trainer(rule).fit(model, Once())
    assert set(rule.steps.values()) == {1}
    assert rule.tasks == 0


@pytest.mark.parametrize("importance", ["fisher", "sensitivity", "path"])
def test_a_gradient_that_is_not_finite_leaves_no_trace(importance: Any) -> None:
    class Cleaning(Net):
        """Its own hook comes after the callbacks have seen the gradients."""

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.net[0].weight.grad.nan_to_num_(0.0)

        def backward(self, loss: torch.Tensor) -> None:
            super().backward(loss)
            self.net[0].weight.grad[0, 0] = torch.nan

    model, rule = Cleaning(plain_net()), StreamingConsolidation(10.0, measure=importance, normalize=None)
    make_trainer(rule, max_epochs=3).fit(model, loader(*task(0)))
    assert weights(model).isfinite().all()
    assert all(t.isfinite().all() for t in rule.synapses.view["importance"])


def test_each_synapse_has_an_age_of_its_own() -> None:
    """A layer that thaws late averages over its own steps, not over those of all."""

    class Thawing(Net):
        def on_train_epoch_start(self) -> None:
            self.net[0].requires_grad_(self.current_epoch >= 3)

    gradients: list[torch.Tensor] = []

    class Watching(StreamingConsolidation):
        def observe(self, step: Any) -> None:
            if "net.0.weight" in step.synapses.names:
                gradients.append(step.gradients[step.synapses.names.index("net.0.weight")].clone())
            super().observe(step)

    model, rule = Thawing(plain_net()), Watching(0.0, measure="fisher", importance_decay=1.0)
    model.net[0].requires_grad_(False)
    make_trainer(rule, max_epochs=5).fit(model, loader(*task(0)))
    assert len(gradients) == 6
    found = rule.synapses.view["importance"][rule.synapses.view.names.index("net.0.weight")]
    torch.testing.assert_close(found, torch.stack(gradients).square().mean(0))


@pytest.mark.parametrize("importance", ["fisher", "sensitivity", "path"])
def test_a_limit_holds_in_the_pull(importance: Any) -> None:
    limit = 1e-3
    rule = StreamingConsolidation(2.0, measure=importance, max_importance=limit, normalize=None)
    make_trainer(rule, max_epochs=3).fit(Net(plain_net()), loader(*task(0)))
    view = rule.synapses.view
    pulled = [torch.zeros_like(p) for p in view.parameters]
    with torch.no_grad():
        rule.pull(view, pulled)
    distances = [(p - a).abs() for p, a in zip(view.parameters, view["anchor"], strict=True)]
    excess = [(g.abs() - 2 * limit * d).max() for g, d in zip(pulled, distances, strict=True)]
    assert max(excess) <= 1e-9
    assert min(excess) > -1e-9  # somewhere in each tensor it is what decides


def test_a_limit() -> None:
    rule = StreamingConsolidation(1.0, measure="sensitivity", max_importance=1e-3, normalize=None)
    make_trainer(rule, max_epochs=3).fit(Net(plain_net()), loader(*task(0)))
    used = rule.effective_importance(rule.synapses.view)
    assert max(t.max() for t in used) == pytest.approx(1e-3)
    assert max(t.max() for t in rule.synapses.view["importance"]) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"measure": "hessian"}, "'fisher', 'sensitivity' or 'path'"),
        ({"importance_decay": 1.1}, "0 to 1"),
        ({"anchor_decay": -0.1}, "0 to 1"),
        ({"damping": 0.0}, "damping must be a finite number above 0"),
    ],
)
def test_arguments_that_cannot_work(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        StreamingConsolidation(1.0, **arguments, normalize=None)
