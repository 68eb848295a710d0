"""The shared view of a step, with plain torch optimizers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from cl_callbacks.synapses.state import Synapses
from cl_callbacks.synapses.step import Need, Step
from cl_callbacks.synapses.synaptic_step import SynapticStep
from cl_callbacks.synapses.view import SynapseView


class Recorder:
    """A rule that pulls and rewrites by constants, and writes down what it sees."""

    owns_update, weight_noise, local = False, None, True

    def __init__(self, model: nn.Module, needs: set[str], pull: float = 0.0, rewrite: float = 0.0) -> None:
        self.needs, self.amount, self.shift = frozenset(needs), pull, rewrite
        self.synapses = Synapses({})
        named = dict(model.named_parameters())
        self.synapses.place(named, list(named))
        self.seen: list[dict[str, list[Tensor]]] = []
        self.pulls = self.ends = 0

    def pull(self, synapses: SynapseView, gradients: list[Tensor]) -> None:
        self.pulls += 1
        torch._foreach_add_(gradients, self.amount)

    def rewrite(self, step: Step) -> None:
        if self.shift:
            torch._foreach_add_(step.synapses.parameters, self.shift)

    def end_step(self, synapses: SynapseView) -> None:
        self.ends += 1

    def observe(self, step: Step) -> None:
        self.seen.append(
            {
                "names": step.synapses.names,
                "gradients": [g.clone() for g in step.snapshots.get("gradients", [])],
                "updates": [u.clone() for u in step.snapshots.get("updates", [])],
            }
        )


def backward(model: nn.Module, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    model.zero_grad()
    model(torch.randn(5, 3)).square().mean().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    ],
)
@pytest.mark.parametrize("first", ["pulls", "observes"])
def test_observes_the_task_gradient_and_the_realised_update(make: Callable, first: str) -> None:
    model = nn.Linear(3, 2)
    observer, puller = (
        Recorder(model, {"gradients", "updates"}),
        Recorder(model, set(), pull=0.5, rewrite=0.25),
    )
    rules = [puller, observer] if first == "pulls" else [observer, puller]
    optimizer, step = make(model.parameters()), SynapticStep(rules)
    step.attach([optimizer])
    for k in range(3):
        gradients = backward(model, k)
        before = [p.detach().clone() for p in model.parameters()]
        step.about_to_step(optimizer)
        assert all(torch.equal(p.grad, g + 0.5) for p, g in zip(model.parameters(), gradients, strict=True))
        optimizer.step()
        seen = observer.seen[k]
        assert all(map(torch.equal, seen["gradients"], gradients))
        # The whole of it: what the optimizer did, and what the other rule made of that.
        updates = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
        assert all(map(torch.equal, seen["updates"], updates))
    assert puller.seen[0]["gradients"] == [] == puller.seen[0]["updates"]


def test_snapshots_are_shared_and_taken_only_when_needed() -> None:
    model = nn.Linear(3, 2)
    a, b = Recorder(model, {"gradients"}), Recorder(model, {"gradients"})
    idle = SynapticStep([Recorder(model, set())])
    optimizer, step = torch.optim.SGD(model.parameters(), lr=0.1), SynapticStep([a, b])
    backward(model)
    idle.about_to_step(optimizer)
    assert not any(idle._buffers.values())
    step.about_to_step(optimizer)
    assert len(step._buffers["gradients"]) == 2
    assert not step._buffers["before"]
    (plan,) = step._plans.values()
    (block,) = plan.blocks
    (_, first), (_, second) = block._observes
    assert all(x is y for x, y in zip(first.gradients, second.gradients, strict=True))


def test_what_a_rule_did_not_ask_for_is_not_there() -> None:
    """Nor what is there at another time, whatever other rules ask for."""
    model = nn.Linear(3, 2)
    found: dict[str, list[str]] = {"rewrite": [], "observe": []}

    class Asking(Recorder):
        def rewrite(self, step: Step) -> None:
            found["rewrite"] += [need for need in get_args(Need) if self.has(step, need)]

        def observe(self, step: Step) -> None:
            found["observe"] += [need for need in get_args(Need) if self.has(step, need)]

        def has(self, step: Step, need: str) -> bool:
            try:
                return bool(getattr(step, need))
            except LookupError as error:
                assert f"this step has no {need!r}" in str(error)
                return False

    rules = [Asking(model, {"before", "updates"}), Recorder(model, {"gradients", "updates"})]
    optimizer, step = torch.optim.SGD(model.parameters(), lr=0.1), SynapticStep(rules)
    step.attach([optimizer])
    backward(model)
    step.about_to_step(optimizer)
    optimizer.step()
    assert found == {"rewrite": ["before"], "observe": ["updates"]}


def test_options_are_those_of_each_group_at_the_step() -> None:
    model = nn.Linear(3, 2)
    groups = [{"params": [model.bias], "lr": 0.5}, {"params": [model.weight]}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    seen: list[list[float]] = []
    rule = Recorder(model, set())
    rule.observe = lambda step: seen.append(step.option("lr"))  # type: ignore[method-assign]
    step = SynapticStep([rule])
    step.attach([optimizer])
    for _ in range(2):
        backward(model)
        step.about_to_step(optimizer)
        optimizer.step()
        schedule.step()
    optimizer.load_state_dict(optimizer.state_dict())  # puts other dictionaries in its groups' place
    optimizer.param_groups[0]["lr"] = 7.0
    step.about_to_step(optimizer)
    optimizer.step()
    assert seen == [[0.1, 0.5], [0.05, 0.25], [0.025, 7.0]]


def test_two_optimizers_of_the_same_parameters_keep_their_options_apart() -> None:
    model = nn.Linear(3, 2)
    optimizers = [torch.optim.SGD(model.parameters(), lr=lr) for lr in (0.1, 0.2)]
    seen: list[list[float]] = []
    rule = Recorder(model, set())
    rule.observe = lambda step: seen.append(step.option("lr"))  # type: ignore[method-assign]
    step = SynapticStep([rule])
    step.attach(optimizers)
    for optimizer in (*optimizers, *optimizers):
        backward(model)
        step.about_to_step(optimizer)
        optimizer.step()
    assert seen == [[0.1, 0.1], [0.2, 0.2]] * 2


def test_a_skipped_step_leaves_no_trace() -> None:
    """As a GradScaler does after an overflow: the optimizer is never called."""
    model = nn.Linear(3, 2)
    rule = Recorder(model, {"gradients", "updates"})
    optimizer, step = torch.optim.SGD(model.parameters(), lr=0.1), SynapticStep([rule])
    step.attach([optimizer])
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.inf)
    step.about_to_step(optimizer)  # … and no step
    gradients = backward(model)
    step.about_to_step(optimizer)
    optimizer.step()
    assert len(rule.seen) == 1
    assert all(map(torch.equal, rule.seen[0]["gradients"], gradients))


def test_a_step_that_was_not_announced_is_pulled_and_observed_once() -> None:
    model = nn.Linear(3, 2)
    rule = Recorder(model, {"gradients", "updates"}, pull=0.5)
    optimizer, step = torch.optim.SGD(model.parameters(), lr=0.1), SynapticStep([rule])
    step.attach([optimizer])
    for announced in (False, True, False):
        gradients = backward(model)
        if announced:
            step.about_to_step(optimizer)
        optimizer.step()
        assert all(map(torch.equal, rule.seen[-1]["gradients"], gradients))
        assert all(torch.equal(p.grad, g + 0.5) for p, g in zip(model.parameters(), gradients, strict=True))
    assert len(rule.seen) == rule.pulls == rule.ends == 3
    step.detach()
    optimizer.step()
    assert rule.pulls == 3
    step.attach([optimizer])
    optimizer.step()
    assert rule.pulls == 4


def test_two_optimizers_show_each_its_own_synapses() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    rule = Recorder(model, {"updates"})
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in model]
    step = SynapticStep([rule])
    step.attach(optimizers)
    backward(model)
    for optimizer in reversed(optimizers):
        step.about_to_step(optimizer)
        optimizer.step()
    assert [seen["names"] for seen in rule.seen] == [["1.weight", "1.bias"], ["0.weight", "0.bias"]]


def test_parameters_without_a_gradient_do_not_step() -> None:
    model = nn.Linear(3, 2)
    rule = Recorder(model, {"gradients"}, pull=1.0)
    optimizer, step = torch.optim.SGD(model.parameters(), lr=0.1), SynapticStep([rule])
    step.attach([optimizer])
    for absent in ("bias", "weight", None, "bias"):
        backward(model)
        if absent:
            getattr(model, absent).grad = None
        step.about_to_step(optimizer)
        optimizer.step()
    assert [seen["names"] for seen in rule.seen] == [["weight"], ["bias"], ["weight", "bias"], ["weight"]]
    assert len(step._buffers["gradients"]) == 2


def test_plans_stay_bounded_when_heads_come_and_go() -> None:
    model = nn.ModuleList(nn.Linear(1, 1) for _ in range(100))
    rule = Recorder(model, {"gradients"})
    optimizer, step = torch.optim.SGD(model.parameters(), lr=0.1), SynapticStep([rule])
    for head in model:
        model.zero_grad()
        head(torch.ones(1)).sum().backward()
        step.about_to_step(optimizer)
    assert len(step._plans) <= 32
    assert rule.pulls == 100


class Decaying(torch.optim.SGD):
    """Goes on after its parent's step, whose hooks torch calls too once a plain SGD has been built."""

    def step(self, closure: Callable | None = None) -> None:  # type: ignore[override]
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            p.data.mul_(0.5)


def test_the_step_of_a_subclass_is_over_when_its_parents_is_over_and_the_rest_is_done() -> None:
    model = nn.Linear(3, 2)
    torch.optim.SGD(model.parameters(), lr=0.1)
    rule, owner = Recorder(model, {"updates"}), Rewriter(model, owns=True)
    optimizer, step = Decaying(model.parameters(), lr=0.1), SynapticStep([rule, owner])
    step.attach([optimizer])
    for announced in (False, True):  # before the step, or by its closure
        before = [p.detach().clone() for p in model.parameters()]
        backward(model)
        if not announced:
            step.about_to_step(optimizer)
        optimizer.step(partial(step.about_to_step, optimizer) if announced else None)
        for p, b, u in zip(model.parameters(), before, rule.seen[-1]["updates"], strict=True):
            torch.testing.assert_close(p.detach(), b + 0.5)
            assert torch.equal(u, p.detach() - b)
    assert len(rule.seen) == 2


def test_a_step_that_broke_off_does_not_hide_those_of_later_batches() -> None:
    model = nn.Linear(3, 2)
    rule = Recorder(model, {"updates"})
    optimizer, step = torch.optim.SGD(model.parameters(), lr=0.1), SynapticStep([rule])
    step.attach([optimizer])

    def failing() -> None:
        raise KeyError("as planned")

    with pytest.raises(KeyError):
        optimizer.step(failing)
    step.start_batch()
    backward(model)
    optimizer.step(partial(step.about_to_step, optimizer))
    assert len(rule.seen) == 1


@pytest.mark.parametrize("closures", [1, 2])
def test_an_optimizer_that_evaluates_its_closure_again_within_a_step_is_refused(closures: int) -> None:
    class Searching(torch.optim.SGD):
        def step(self, closure: Callable) -> None:  # type: ignore[override]
            for _ in range(closures):
                closure()
            super().step()

    model = nn.Linear(3, 2)
    rule = Recorder(model, {"gradients"})
    optimizer, step = Searching(model.parameters(), lr=0.1), SynapticStep([rule])
    step.attach([optimizer])

    def closure() -> None:
        backward(model)
        step.about_to_step(optimizer)

    if closures > 1:
        with pytest.raises(MisconfigurationException, match="Searching evaluates the loss several times"):
            optimizer.step(closure)
    else:
        optimizer.step(closure)
        optimizer.step(closure)
    assert len(rule.seen) == (2 if closures == 1 else 0)


def test_sparse_gradients_are_refused() -> None:
    model = nn.Embedding(4, 2, sparse=True)
    step = SynapticStep([Recorder(model, set())])
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"Recorder .* weight gets a sparse gradient.* sparse=False"):
        step.about_to_step(torch.optim.SparseAdam(model.parameters()))


def test_sparse_gradients_of_others_are_no_concern() -> None:
    model, other = nn.Linear(2, 2), nn.Embedding(4, 2, sparse=True)
    step = SynapticStep([rule := Recorder(model, {"gradients"})])
    model(other(torch.tensor([1]))).sum().backward()
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    step.attach([optimizer])
    step.about_to_step(optimizer)
    optimizer.step()
    assert len(rule.seen) == 1


def test_a_sparse_gradient_is_refused_before_another_optimizer_steps() -> None:
    model = nn.Sequential(nn.Embedding(4, 2, sparse=True), nn.Linear(2, 2))
    step = SynapticStep([Recorder(model, set())])
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse=False"):
        step.about_to_step(torch.optim.SGD(model[1].parameters(), lr=0.1))


class Rewriter(Recorder):
    """A rule that halves the update as it finds it, or puts another in its place."""

    def __init__(self, model: nn.Module, owns: bool = False, amount: float = 0.5) -> None:
        super().__init__(model, {"before", "pulled"})
        self.owns_update, self.share = owns, amount
        self.pulled: list[Tensor] = []

    def rewrite(self, step: Step) -> None:
        weights = step.synapses.parameters
        self.pulled = [g.clone() for g in step.pulled]
        if self.owns_update:
            torch._foreach_copy_(weights, step.before)
            torch._foreach_add_(weights, self.share)
        else:
            update = torch._foreach_sub(weights, step.before)
            torch._foreach_sub_(weights, torch._foreach_mul(update, self.share))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    ],
)
def test_rules_rewrite_the_realised_update_one_after_the_other(make: Callable) -> None:
    model, free = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    observer = Recorder(model, {"updates"})
    step = SynapticStep([Rewriter(model), observer, Rewriter(model, amount=0.25)])
    optimizer, plain = make(model.parameters()), make(free.parameters())
    step.attach([optimizer])
    for _ in range(3):
        free.load_state_dict(model.state_dict())
        for p, q in zip(model.parameters(), free.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        before = [p.detach().clone() for p in model.parameters()]
        step.about_to_step(optimizer)
        optimizer.step()
        plain.step()
        updates = observer.seen[-1]["updates"]
        for p, q, b, u in zip(model.parameters(), free.parameters(), before, updates, strict=True):
            torch.testing.assert_close(p - b, 0.5 * 0.75 * (q - b), rtol=1e-9, atol=1e-12)
            assert torch.equal(u, p - b)


@pytest.mark.parametrize("order", [1, -1])
def test_the_owner_of_the_update_comes_first(order: int) -> None:
    model = nn.Linear(3, 2)
    rules = [Rewriter(model, owns=True, amount=0.5), Rewriter(model), Recorder(model, {"updates"})]
    step, optimizer = SynapticStep(rules[::order]), torch.optim.Adam(model.parameters(), lr=7.0)
    step.attach([optimizer])
    before = [p.detach().clone() for p in model.parameters()]
    backward(model)
    step.about_to_step(optimizer)
    optimizer.step()
    for p, b in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), b + 0.25)
    assert all(torch.allclose(u, torch.tensor(0.25), atol=1e-6) for u in rules[2].seen[0]["updates"])


def test_the_pulled_gradient_has_all_pulls_and_no_clipping() -> None:
    model = nn.Linear(3, 2)
    first, last = Rewriter(model), Recorder(model, {"gradients"}, pull=0.5)
    step, optimizer = SynapticStep([first, last]), torch.optim.SGD(model.parameters(), lr=0.1)
    step.attach([optimizer])
    gradients = backward(model)
    step.about_to_step(optimizer)
    torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3)
    optimizer.step()
    assert all(map(torch.equal, last.seen[0]["gradients"], gradients))
    assert all(torch.equal(p, g + 0.5) for p, g in zip(first.pulled, gradients, strict=True))
