"""The ratio of a rule's effect to the gradient and the update, against closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_callbacks import SynapticCallback
from cl_callbacks.compiled.kernels import SMALLEST
from cl_callbacks.rules.scale_watch import ScaleWatch
from cl_callbacks.synapses.pull_scale import PullScale, by_layer, ratio, ratios
from cl_callbacks.synapses.step import Step
from cl_callbacks.synapses.synaptic_step import SynapticStep
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors import blocks
from tests.every_rule import assert_same, every_rule, make, state
from tests.small import Net, fit_tasks, plain_net, weights


class Pulls(SynapticCallback):
    """Adds a multiple of each gradient to it, and of each update after the step."""

    local = True

    def __init__(self, pull: float = 0.0, rewrite: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.by, self.further = pull, rewrite
        self.needs = frozenset({"gradients", "before"})

    def pull(self, synapses: SynapseView, gradients: list[Tensor]) -> None:
        torch._foreach_add_(gradients, torch._foreach_mul(gradients, self.by))

    def rewrite(self, step: Step) -> None:
        moved = torch._foreach_sub(step.synapses.parameters, step.before)
        torch._foreach_add_(step.synapses.parameters, torch._foreach_mul(moved, self.further))


def one_step(
    model: nn.Module,
    rules: list[Any],
    scale: PullScale | None,
    compiled: bool = False,
    optimizers: list[torch.optim.Optimizer] | None = None,
) -> SynapticStep:
    """One step of each optimizer, with random gradients."""
    step = SynapticStep(rules, compiled=compiled, begin=lambda _: scale)
    optimizers = optimizers or [torch.optim.SGD(model.parameters(), lr=0.1)]
    step.attach(optimizers)
    torch.manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    for optimizer in optimizers:
        step.about_to_step(optimizer)
        optimizer.step()
    return step


def measured(
    model: nn.Module,
    rules: list[Any],
    optimizers: list[torch.optim.Optimizer] | None = None,
    what: str = "pulling",
) -> PullScale:
    """Of all rules the pulls, or the rewrites."""
    for rule in rules:
        rule._place(Net(model))
    scale = PullScale(rules, []) if what == "pulling" else PullScale([], rules)
    one_step(model, rules, scale, optimizers=optimizers)
    return scale


@pytest.mark.parametrize("elements", [2**17, 5])
def test_a_known_pull_beside_a_known_gradient(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where blocks have only some rows of a weight."""
    monkeypatch.setattr(blocks, "ELEMENTS_ON_CPU", elements)
    model = plain_net()
    whole, part = Pulls(0.25), Pulls(-0.5, exclude="net.0", name="part")
    scale = measured(model, [whole, part])
    torch.testing.assert_close(ratio(scale.changes_of(whole), whole.synapses.view), torch.tensor(0.25))
    # The second meets a gradient that is a quarter larger already, and is compared with the task's own.
    expected = torch.tensor(0.5 * 1.25)
    torch.testing.assert_close(ratio(scale.changes_of(part), part.synapses.view), expected)


def test_each_layer_has_its_own() -> None:
    class First(Pulls):
        """Pulls only the first layer."""

        local = True

        def pull(self, synapses: SynapseView, gradients: list[Tensor]) -> None:
            for name, gradient in zip(synapses.names, gradients, strict=True):
                gradient.mul_(3.0 if name.startswith("net.0") else 1.0)

    model, rule = plain_net(), First()
    changes = measured(model, [rule]).changes_of(rule)
    names = rule.synapses.view.names
    squares = by_layer(changes, {name: name.rpartition(".")[0] for name in names})
    assert list(squares) == ["net.0", "net.2"]
    torch.testing.assert_close(ratios(list(squares.values()), rule.synapses.view), torch.tensor([2.0, 0.0]))
    torch.manual_seed(0)
    first, rest = (
        torch.cat([torch.randn_like(p).flatten() for p in layer.parameters()]).norm()
        for layer in (model[0], model[2])
    )
    expected = 2 * first / (first**2 + rest**2).sqrt()
    torch.testing.assert_close(ratio(changes, rule.synapses.view), expected)


def test_a_rewrite_is_compared_with_the_optimizers_update() -> None:
    class Owns(Pulls):
        """Doubles the update: what comes after it is compared with that."""

        local, owns_update = True, True

    one, two = Pulls(rewrite=-0.25), Pulls(rewrite=-1.0, name="two")
    scale = measured(plain_net(), [one, two], what="rewriting")
    for rule, expected in ((one, 0.25), (two, 0.75)):
        found = ratio(scale.changes_of(rule), rule.synapses.view)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=0)
    model, owner = plain_net(), Owns(rewrite=1.0, name="owner")
    for rule in (one, owner):
        rule._place(Net(model))
    scale = PullScale([], [one])
    one_step(model, [one, owner], scale)
    found = ratio(scale.changes_of(one), one.synapses.view)
    # It sees all that has happened to the weights: a quarter of the doubled update.
    torch.testing.assert_close(found, torch.tensor(0.25), rtol=1e-4, atol=0)


def test_two_optimizers_make_one_ratio() -> None:
    model, rule = plain_net(), Pulls(0.5)
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (model[0], model[2])]
    changes = measured(model, [rule], optimizers).changes_of(rule)
    assert [len(change.names) for change in changes] == [2, 2]
    torch.testing.assert_close(ratio(changes, rule.synapses.view), torch.tensor(0.5))


def test_what_is_not_known_is_no_effect() -> None:
    model, rule = plain_net(), Pulls(0.5)
    scale = measured(model, [rule])
    assert scale.changes_of(Pulls()) == []
    (change,) = scale.changes_of(rule)
    change.squares.fill_(torch.nan)
    assert ratio([change], rule.synapses.view) == 0.0
    change.squares[0], change.squares[1] = 1.0, 0.0
    assert ratio([change], rule.synapses.view) == torch.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision(dtype: torch.dtype) -> None:
    model, rule = plain_net().to(dtype), Pulls(0.25)
    found = ratio(measured(model, [rule]).changes_of(rule), rule.synapses.view)
    assert found.item() == pytest.approx(0.25, rel=1e-2)


@pytest.mark.slow
def test_compiled_it_is_the_same_and_changes_nothing() -> None:
    side = int(SMALLEST**0.5) + 1
    ratios, ends = {}, {}
    for compiled, scaled in ((False, True), (True, True), (True, False)):
        torch.manual_seed(1)
        model, rules = nn.Sequential(nn.Linear(side, side)), [make("ewc"), make("si"), make("benna-fusi")]
        for rule in rules:
            rule._place(Net(model))
            rule.tasks = 1
            for field in rule.synapses.view.fields.values():
                for t in field:
                    t.uniform_()
        step = one_step(model, rules, PullScale(rules[:2], rules[2:]) if scaled else None, compiled)
        ends[compiled, scaled] = weights(model)
        if step.scale is not None:
            ratios[compiled] = [ratio(step.scale.changes_of(r), r.synapses.view) for r in rules]
            assert min(ratios[compiled]) > 0
    torch.testing.assert_close(ratios[True], ratios[False])
    assert torch.equal(ends[True, True], ends[True, False])


@every_rule
def test_training_is_the_same_bit_for_bit_with_every_step_measured(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for measures in (True, False):
        torch.manual_seed(0)
        model, memory = Net(plain_net()), make(rule)
        if not measures:
            monkeypatch.setattr(ScaleWatch, "before_step", lambda *_: None)
        fit_tasks(model, memory, max_epochs=2, log_every_n_steps=1, gradient_clip_val=1.0)
        found[measures] = weights(model), state(memory)
        assert bool(memory.rule_scale.latest) == (measures and memory.acts_on is not None)
    assert torch.equal(found[True][0], found[False][0])
    assert_same(found[True][1], found[False][1])
