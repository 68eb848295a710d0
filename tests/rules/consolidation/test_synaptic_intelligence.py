"""Synaptic intelligence: closed forms on quadratics, and a plain training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cl_callbacks import EWC, BatchBoundaries, EpochBoundaries, SynapticCallback, SynapticIntelligence
from cl_callbacks.synapses.step import Step
from cl_callbacks.synapses.synaptic_step import SynapticStep
from tests.references.path_integral import SynapticIntelligence as Reference
from tests.references.path_integral import train_sequence
from tests.small import Net, fit_tasks, loader, make_trainer, plain_net, task, weights

SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


class Quadratic(LightningModule):
    """The mean over centres c of 1/2 (theta - c)^T A (theta - c)."""

    def __init__(self, curvature: Tensor, optimizer: Callable[..., Any]) -> None:
        super().__init__()
        self.curvature, self.optimizer = curvature, optimizer
        generator = torch.Generator().manual_seed(1)
        start = torch.randn(len(curvature), generator=generator, dtype=torch.float64)
        self.theta = nn.Parameter(start)

    def loss(self, centres: Tensor) -> Tensor:
        distance = self.theta - centres
        return 0.5 * ((distance @ self.curvature) * distance).sum(1).mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch[0])

    def configure_optimizers(self) -> Any:
        return self.optimizer([self.theta])


def curvature(size: int = 5) -> Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return root @ root.T


def centres(size: int = 5) -> Tensor:
    return torch.randn(4, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Keep(SynapticIntelligence):
    """Keeps the updates, and the path that the boundary reads."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.updates: list[Tensor] = []
        self.paths: list[Tensor] = []

    def observe(self, step: Step) -> None:
        super().observe(step)
        self.updates.append(torch.cat([u.flatten() for u in step.updates]))

    def estimate(self, *args: Any) -> list[Tensor]:
        self.paths.append(torch.cat([w.flatten() for w in self.synapses.view["path"]]).clone())
        return super().estimate(*args)


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(SGD, lr=0.02),
        partial(SGD, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1),
        partial(Adam, lr=0.05),
        partial(AdamW, lr=0.05, weight_decay=0.1),
    ],
)
@pytest.mark.parametrize("pulled", [False, True])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 4}, {"gradient_clip_val": 0.5}])
def test_the_path_is_the_fall_of_the_loss(optimizer: Any, pulled: bool, options: dict[str, Any]) -> None:
    """On a quadratic, exactly: sum(omega) = L_0 - L_T + 1/2 sum(D^T A D), whatever moves the weights."""
    model, rule = Quadratic(curvature(), optimizer), Keep(0.0)
    others = [EWCLike(3.0)] if pulled else []
    batch_size = 1 if "accumulate_grad_batches" in options else 4
    before = model.loss(centres()).item()
    trainer = make_trainer(*others, rule, max_epochs=30, **options)
    trainer.fit(model, loader(centres(), batch_size=batch_size))
    (path,) = rule.paths
    assert len(rule.updates) == 30
    second_order = 0.5 * sum(u @ model.curvature @ u for u in rule.updates)
    fall = before - model.loss(centres()).item()
    assert path.sum().item() == pytest.approx(fall + second_order.item(), rel=1e-9)


class EWCLike(SynapticCallback):
    """Pulls all weights to where they started: no part of the task's gradient."""

    fields = {"anchor": "parameter"}  # noqa: RUF012

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def pull(self, synapses: Any, gradients: list[Tensor]) -> None:
        distance = torch._foreach_sub(synapses.parameters, synapses["anchor"])
        torch._foreach_add_(gradients, distance, alpha=self.strength)


@pytest.mark.slow
def test_importance_tends_to_half_the_curvature() -> None:
    """Small steps to the minimum of a diagonal quadratic: strength 1 is then EWC's."""
    diagonal = torch.tensor([0.5, 1.0, 2.0, 4.0, 3.0], dtype=torch.float64)
    model = Quadratic(torch.diag(diagonal), partial(SGD, lr=5e-3))
    rule = SynapticIntelligence(1.0, damping=1e-12, normalize=None)
    make_trainer(rule, max_epochs=3000).fit(model, loader(centres().mean(0, keepdim=True)))
    torch.testing.assert_close(rule.synapses.view["importance"][0], diagonal / 2, rtol=0.02, atol=0)


@pytest.mark.parametrize("proximal", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimizer", [partial(SGD, lr=0.1, momentum=0.9), partial(Adam, lr=0.02)])
def test_equals_a_plain_loop(optimizer: Any, accumulate: int, proximal: bool) -> None:
    torch.manual_seed(0)
    model = Net(plain_net(), optimizer).double()
    slow = copy.deepcopy(model.net)
    tasks = [(x.double(), y) for x, y in map(task, range(3))]
    rule = SynapticIntelligence(2.0, damping=0.05, decay=0.9, proximal=proximal, normalize=None)
    trainer = make_trainer(rule, max_epochs=4, accumulate_grad_batches=accumulate)
    for index, data in enumerate(tasks):
        trainer.fit_loop.max_epochs = 4 * (index + 1)
        trainer.fit(model, loader(*data))
    reference = Reference(dict(slow.named_parameters()), damping=0.05, decay=0.9)
    train_sequence(
        slow,
        tasks,
        rule=reference,
        strength=2.0,
        epochs=4,
        batch_size=8,
        make_optimizer=optimizer,
        accumulate=accumulate,
        proximal=proximal,
    )
    torch.testing.assert_close(weights(model), weights(slow), rtol=1e-8, atol=1e-10)
    for field, slow_field in (("importance", reference.importance), ("anchor", reference.anchor)):
        for found, expected in zip(rule.synapses.view[field], slow_field.values(), strict=True):
            torch.testing.assert_close(found, expected.detach(), rtol=1e-7, atol=1e-10)
    expected = reference.penalty(dict(slow.named_parameters()), 2.0).detach()
    torch.testing.assert_close(rule.penalty(rule.synapses.view), expected, rtol=1e-7, atol=1e-12)


def test_a_scaler_and_a_skipped_step_leave_the_path_right() -> None:
    """Sixteen-bit mixed precision with an overflow in the middle, against full precision."""

    class Overflowing(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * torch.inf if batch_idx == 1 and self.broken else loss

    paths = []
    for mixed in (True, False):
        torch.manual_seed(0)
        model, rule = Overflowing(plain_net(), partial(SGD, lr=0.1)), Keep(1.0)
        model.broken = mixed
        x, y = task(0)
        kept = (x, y) if mixed else (x[[*range(8), *range(16, 24)]], y[[*range(8), *range(16, 24)]])
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        plugins = [MixedPrecision("16-mixed", "cpu", scaler=scaler)] if mixed else None
        make_trainer(rule, plugins=plugins).fit(model, loader(*kept))
        assert len(rule.updates) == 2
        paths.append(rule.paths[0])
    torch.testing.assert_close(*paths, rtol=0.05, atol=1e-4)


def test_each_boundary_reads_the_path_of_its_own_task() -> None:
    """Also when the batches themselves say that the task has changed."""
    model, rule = Quadratic(curvature(), partial(SGD, lr=0.02)), Keep(0.0)
    tasks = torch.tensor([0] * 3 + [1] * 2 + [2] * 4)
    trainer = make_trainer(rule, BatchBoundaries(key=1))
    trainer.fit(model, loader(centres().repeat(3, 1)[:9], tasks, batch_size=1))
    assert len(rule.paths) == 3
    restarted = Keep(0.0)
    again = Quadratic(curvature(), partial(SGD, lr=0.02))
    make_trainer(restarted).fit(again, loader(centres()[:3], batch_size=1))
    torch.testing.assert_close(rule.paths[0], restarted.paths[0])
    assert all(not torch.equal(a, b) for a, b in zip(rule.paths[:-1], rule.paths[1:], strict=True))
    assert all(w.abs().sum() == 0 for w in rule.synapses.view["path"])


def test_weight_decay_can_be_left_out() -> None:
    """AdamW's decay moves every weight whatever the loss; without it the path is that of Adam's part."""
    found = {}
    for exclude in (False, True):
        model = Quadratic(curvature(), partial(AdamW, lr=0.05, weight_decay=0.5))
        rule = Keep(0.0, exclude_weight_decay=exclude)
        make_trainer(rule).fit(model, loader(centres()))
        found[exclude] = rule.paths[0]
    fresh = Quadratic(curvature(), SGD)
    (gradient,) = torch.autograd.grad(fresh.loss(centres()), [fresh.theta])
    decay = gradient * 0.05 * 0.5 * fresh.theta.detach()  # -g times -lr wd theta, of the single step
    torch.testing.assert_close(found[False], found[True] + decay, rtol=1e-9, atol=1e-12)
    assert decay.abs().min() > 1e-4
    with pytest.raises(MisconfigurationException, match="not known to be decoupled"):
        model = Quadratic(curvature(), partial(Adam, lr=0.1, weight_decay=0.1))
        make_trainer(SynapticIntelligence(1.0, exclude_weight_decay=True, normalize=None)).fit(
            model, loader(centres())
        )
    plain = Quadratic(curvature(), partial(Adam, lr=0.1))
    make_trainer(SynapticIntelligence(1.0, exclude_weight_decay=True, normalize=None)).fit(
        plain, loader(centres())
    )


def test_an_infinite_gradient_costs_one_step() -> None:
    """Clipping by value lets such a step happen."""

    class Bursting(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.steps = getattr(self, "steps", 0) + 1

        def backward(self, loss: Tensor) -> None:
            super().backward(loss)
            if getattr(self, "steps", 0) == 1:
                self.net[0].weight.grad[0, 0] = torch.inf

    model, rule = Bursting(plain_net()), SynapticIntelligence(1.0, normalize=None)
    trainer = make_trainer(rule, gradient_clip_val=0.1, gradient_clip_algorithm="value")
    trainer.fit(model, loader(*task(0)))
    importance = rule.synapses.view["importance"]
    assert all(t.isfinite().all() for t in importance)
    assert importance[0][0, 0] > 0  # from the task's other steps


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def test_a_step_costs_a_few_calls_whatever_the_number_of_parameters() -> None:
    """For gradient, weights and path one each, and two for the update and for the pull.

    Two more, each in one call for all parameters, leave out what is not finite.
    """
    model, rule = Net(plain_net()), SynapticIntelligence(1.0, normalize=None)
    rule._place(model)
    optimizer = SGD(model.parameters(), lr=0.1)
    step = SynapticStep([rule])
    step.attach([optimizer])
    model(task(0)[0]).sum().backward()
    update = ["_foreach_sub_", "_foreach_neg_", "nan_to_num_"]
    snapshots = ["_foreach_copy_", "nan_to_num_", "_foreach_copy_"]
    pull = ["_foreach_sub", "_foreach_addcmul_"]
    for tasks, expected in (
        (0, [*snapshots, *update, "_foreach_addcmul_"]),
        (1, [*snapshots, *pull, *update, "_foreach_addcmul_"]),
    ):
        rule.tasks = tasks
        optimizer.step = lambda: (step._stepping(optimizer, (), {}), step._stepped(optimizer, (), {}))
        step.about_to_step(optimizer)  # plans once
        optimizer.step()
        with Counting() as counting:
            step.about_to_step(optimizer)
            optimizer.step()
        assert [call for call in counting.calls if call not in ("detach", "alias")] == expected


def test_no_second_forward_or_backward() -> None:
    class Counted(Net):
        forwards = 0

        def forward(self, x: Tensor) -> Tensor:
            self.forwards += 1
            return super().forward(x)

        def backward(self, loss: Tensor) -> None:
            self.backwards = getattr(self, "backwards", 0) + 1
            super().backward(loss)

    model = Counted(plain_net())
    fit_tasks(model, SynapticIntelligence(1.0, normalize=None), tasks=2, max_epochs=2)
    assert model.forwards == model.backwards == 2 * 2 * 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"damping": 0.0}, "damping must be a finite number above 0"),
        ({"decay": 1.1}, "0 to 1, or 'mean'"),
        ({"decay": "sum"}, "0 to 1, or 'mean'"),
        ({"max_importance": 0.0}, "max_importance must be a finite number above 0"),
    ],
)
def test_arguments_that_cannot_work(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SynapticIntelligence(1.0, **arguments, normalize=None)


def test_an_importance_file_leaves_the_open_path_behind(tmp_path: Path) -> None:
    model, rule = Net(plain_net()), SynapticIntelligence(1.0, normalize=None)
    fit_tasks(model, rule, EpochBoundaries(2), tasks=1, max_epochs=3)
    assert any(w.abs().sum() > 0 for w in rule.synapses.view["path"])
    rule.save_importance(tmp_path / "importance")
    loaded = SynapticIntelligence(1.0, importance_file=tmp_path / "importance", normalize=None)
    loaded._place(model)
    for field in ("importance", "anchor"):
        assert all(map(torch.equal, loaded.synapses.view[field], rule.synapses.view[field]))
    assert all(w.abs().sum() == 0 for w in loaded.synapses.view["path"])


def test_works_beside_a_rule_that_pulls() -> None:
    """The pull is in the realised update, and not in the gradient of the path."""
    model, rule = Net(plain_net()), SynapticIntelligence(0.0, normalize=None)
    fit_tasks(model, EWC(1e4, normalize=None), rule, EpochBoundaries(1), tasks=1, max_epochs=3)
    assert rule.tasks == 3
    assert all(t.isfinite().all() for t in rule.synapses.view["importance"])


def test_plasticity_is_what_the_pull_leaves_of_a_move() -> None:
    rule = SynapticIntelligence(3.0, normalize=None)
    weights_of = {"a": torch.zeros(2, dtype=torch.float64), "b": torch.zeros(1, dtype=torch.float64)}
    view = rule.synapses.place(weights_of, ["a", "b"])
    view["importance"][0].copy_(torch.tensor([0.5, 2.0]))
    view["importance"][1].fill_(1.0)
    found = rule.plasticity(view, [0.1, 0.2])
    torch.testing.assert_close(found[0], 1 / (1 + 0.1 * 6.0 * view["importance"][0]))
    torch.testing.assert_close(found[1], 1 / (1 + 0.2 * 6.0 * view["importance"][1]))
