"""Optimizers within optimizers, and optimizers that nobody has attached."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from cl_callbacks.synapses.synaptic_step import SynapticStep
from tests.odd_optimizers import Delegating, Evaluating, Lookahead, Sam, parameters
from tests.synapses.test_step import Recorder

PULL = 0.5


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2).double()


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def loss(model: nn.Module) -> Tensor:
    return model(torch.ones(4, 3, dtype=torch.float64)).square().mean()


def closure_for(model: nn.Module) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        model.zero_grad()
        with torch.enable_grad():
            found = loss(model)
            found.backward()
        return found

    return closure


def rule_and_step(model: nn.Module, *optimizers: Any, **options: Any) -> tuple[Recorder, SynapticStep]:
    rule = Recorder(model, {"gradients", "updates"}, pull=PULL)
    step = SynapticStep([rule], **options)
    step.attach(optimizers)
    return rule, step


@pytest.mark.parametrize("wrap", [Delegating, Evaluating, Lookahead, lambda o: Delegating(Evaluating(o))])
@pytest.mark.parametrize("with_closure", [True, False])
def test_a_wrapper_and_what_it_wraps_are_one_step(model: nn.Module, wrap: Any, with_closure: bool) -> None:
    optimizer = wrap(sgd(model))
    rule, _ = rule_and_step(model, optimizer)
    for count in range(1, 5):
        before = [p.detach().clone() for p in model.parameters()]
        gradients = torch.autograd.grad(loss(model), list(model.parameters()))
        closure = closure_for(model)
        if not with_closure:
            closure()
        optimizer.step(closure if with_closure else None)
        assert rule.pulls == rule.ends == len(rule.seen) == count
        assert all(map(torch.equal, rule.seen[-1]["gradients"], gradients))
        updates = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
        assert all(map(torch.equal, rule.seen[-1]["updates"], updates))


@pytest.mark.parametrize("by_hand", [True, False])
def test_sam_is_pulled_at_the_weights_that_it_steps_from(model: nn.Module, by_hand: bool) -> None:
    optimizer = Sam(model.parameters(), torch.optim.SGD, rho=0.3, lr=0.1)
    rule, _ = rule_and_step(model, optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = torch.autograd.grad(loss(model), list(model.parameters()))
    norm = torch.cat([g.flatten() for g in first]).norm()
    higher = {
        name: (p + g * 0.3 / norm).requires_grad_()
        for (name, p), g in zip(before.items(), first, strict=True)
    }
    inputs = torch.ones(4, 3, dtype=torch.float64)
    second = torch.autograd.grad(
        torch.func.functional_call(model, higher, (inputs,)).square().mean(), list(higher.values())
    )
    closure = closure_for(model)
    if by_hand:
        closure()
        optimizer.first_step()
        closure()
        optimizer.second_step()
    else:
        optimizer.step(closure)
    assert rule.pulls == rule.ends == 1
    for p, b, g, seen in zip(
        model.parameters(), before.values(), second, rule.seen[0]["gradients"], strict=True
    ):
        torch.testing.assert_close(seen, g)
        torch.testing.assert_close(p.detach(), b - 0.1 * (g + PULL))


def test_several_inner_optimizers_are_one_step() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double()

    class Chain(Delegating):
        def __init__(self, *inner: torch.optim.Optimizer) -> None:
            self.chain = list(inner)
            self.param_groups = [group for each in inner for group in each.param_groups]

        def step(self, closure: Any = None) -> None:
            closure()
            for each in self.chain:
                each.step()

    optimizer = Chain(sgd(model[0]), sgd(model[1]))
    rule, _ = rule_and_step(model, optimizer)
    optimizer.step(closure_for(model))
    assert (rule.pulls, rule.ends, len(rule.seen)) == (1, 1, 1)
    assert len(rule.seen[0]["names"]) == 4


def test_options_are_those_of_the_inner_optimizer(model: nn.Module) -> None:
    """The outer one's are of another time after a state was loaded."""
    optimizer = Delegating(sgd(model))
    rule, _ = rule_and_step(model, optimizer)
    seen: list[list[float]] = []
    rule.observe = lambda step: seen.append(step.option("lr"))  # type: ignore[method-assign]
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.inner.param_groups[0]["lr"] = 7.0
    assert optimizer.param_groups[0]["lr"] == 0.1
    optimizer.step(closure_for(model))
    assert seen == [[7.0, 7.0]]


class Hiding(Delegating):
    """Keeps the other optimizer where nobody looks for it."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner)
        del self.inner
        self.find = lambda: inner

    def step(self, closure: Any = None) -> Any:
        return self.find().step(closure)


def test_a_hidden_inner_optimizer_is_refused_unless_it_gets_the_closure(model: nn.Module) -> None:
    optimizer = Hiding(sgd(model))
    rule, step = rule_and_step(model, optimizer)
    optimizer.step(closure_for(model))
    assert rule.pulls == rule.ends == 1
    step.refresh()
    with pytest.raises(MisconfigurationException, match="Hiding steps SGD within its own step"):
        optimizer.step()


def test_optimizers_of_other_weights_are_none_of_the_rules_business(model: nn.Module) -> None:
    other = nn.Linear(3, 2).double()
    rule, step = rule_and_step(model, sgd(model))
    closure_for(other)()
    before = [p.grad.clone() for p in parameters(sgd(other))]
    sgd(other).step()
    assert all(map(torch.equal, (p.grad for p in other.parameters()), before))  # type: ignore[arg-type]
    assert rule.pulls == 0
    assert not step._plans


def test_new_optimizers_in_each_batch_do_not_pile_up(model: nn.Module) -> None:
    rule, step = rule_and_step(model, sgd(model))
    alive: list[Any] = []
    for _ in range(50):
        optimizer = sgd(model)
        alive.append(weakref.ref(optimizer))
        optimizer.step(closure_for(model))
    del optimizer
    gc.collect()
    assert rule.pulls == rule.ends == 50
    assert sum(each() is not None for each in alive) <= 1
    assert len(step._plans) == 1
    assert len(step._known) <= 32


def test_what_is_checked_and_what_measures() -> None:
    """Each optimizer is checked once; a step that was announced has no gradients to be checked."""
    model = nn.Linear(3, 2).double()
    optimizer, stranger = Delegating(sgd(model)), sgd(model)
    checked: list[Any] = []
    begun: list[int] = []
    _, step = rule_and_step(
        model, optimizer, check=checked.extend, begin=lambda optimizers: begun.append(len(optimizers))
    )
    assert checked == [optimizer, optimizer.inner]
    stranger.step(closure_for(model))
    stranger.step(closure_for(model))
    assert checked == [optimizer, optimizer.inner, stranger]
    step.about_to_step(stranger)
    stranger.step()
    assert begun == [2, 2, 0]


def test_optimizers_in_place_of_others_are_attached_and_the_others_not(model: nn.Module) -> None:
    first, second = Delegating(sgd(model)), Delegating(sgd(model))
    rule, step = rule_and_step(model, first)
    step.start_batch([second])
    assert "step" not in vars(first)
    assert "step" in vars(second)
    second.step(closure_for(model))
    step.end_batch()
    assert rule.pulls == 1
