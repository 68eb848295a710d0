"""Riemannian walk against a plain training loop."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from cl_callbacks import EpochBoundaries, RWalk
from tests.references.path_integral import RWalk as Reference
from tests.references.path_integral import train_sequence
from tests.small import Net, fit_tasks, loader, make_trainer, plain_net, task, weights


@pytest.mark.parametrize("proximal", [False, True])
@pytest.mark.parametrize("window_steps", [1, 5, 100])
@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.1), partial(torch.optim.Adam, lr=0.02)])
def test_equals_a_plain_loop(optimizer: Any, window_steps: int, proximal: bool) -> None:
    """Windows that end with a task, that are cut short by its end, and that never end."""
    torch.manual_seed(0)
    model = Net(plain_net(), optimizer).double()
    slow = copy.deepcopy(model.net)
    tasks = [(x.double(), y) for x, y in map(task, range(4))]
    settings = {"window_steps": window_steps, "damping": 1e-4}
    rule = RWalk(0.3, proximal=proximal, fisher_decay=0.9, **settings, normalize=None)
    trainer = make_trainer(rule, max_epochs=3)
    for index, data in enumerate(tasks):
        trainer.fit_loop.max_epochs = 3 * (index + 1)
        trainer.fit(model, loader(*data))
    reference = Reference(dict(slow.named_parameters()), decay=0.9, **settings)
    train_sequence(
        slow,
        tasks,
        rule=reference,
        strength=0.3,
        epochs=3,
        batch_size=8,
        make_optimizer=optimizer,
        proximal=proximal,
    )
    torch.testing.assert_close(weights(model), weights(slow), rtol=1e-7, atol=1e-9)
    view = rule.synapses.view
    for field, expected in (("importance", reference.importance), ("fisher", reference.fisher)):
        for found, value in zip(view[field], expected.values(), strict=True):
            torch.testing.assert_close(found, value.detach(), rtol=1e-6, atol=1e-10)
    expected = reference.penalty(dict(slow.named_parameters()), 0.3).detach()
    torch.testing.assert_close(rule.penalty(view), expected, rtol=1e-6, atol=1e-12)


def test_the_score_is_averaged_and_both_parts_share_a_scale() -> None:
    scores: list[torch.Tensor] = []

    class Keep(RWalk):
        def estimate(self, *args: Any) -> Any:
            held = [t.clone() for t in self.synapses.view["score"]]
            found = super().estimate(*args)
            if self.tasks:  # nothing was learned in between, so a half of what was there remains
                torch.testing.assert_close(self.synapses.view["score"], [t / 2 for t in held])
            scores.append(torch.cat([t.flatten() for t in found]))
            return found

    model = Net(plain_net(), partial(torch.optim.SGD, lr=0.0))
    rule = Keep(1.0)
    rule.tasks = 0
    make_trainer(rule, EpochBoundaries(1), max_epochs=3).fit(model, loader(*task(0)))
    fisher = torch.cat([t.flatten() for t in rule.synapses.view["fisher"]])
    scaled = (fisher - fisher.min()) / (fisher.max() - fisher.min())
    torch.testing.assert_close(scores[-1], scaled)  # weights that rest have no score


@pytest.mark.parametrize("decay", ["mean", 0.5])
def test_importance_of_earlier_boundaries_is_kept_as_asked(decay: Any) -> None:
    """Rules of strength 0 see the same training; one forgets what it measured at earlier boundaries."""
    latest, keeping = RWalk(0.0, normalize=None), RWalk(0.0, decay=decay, name="keeping", normalize=None)
    measured: list[torch.Tensor] = []

    class Keep(Callback):
        def on_task_end(self, *args: Any) -> None:
            measured.append(latest.synapses.view["importance"][0].clone())

    fit_tasks(Net(plain_net()), latest, keeping, Keep(), tasks=3)
    first, second, third = measured
    expected = (first + second + third) / 3 if decay == "mean" else third + second / 2 + first / 4
    assert not torch.equal(first, third)
    torch.testing.assert_close(keeping.synapses.view["importance"][0], expected)


def test_every_optimizer_steps_and_windows_close_for_all() -> None:
    """Alternating optimizers: a window counts the steps of both."""

    class Alternating(Net):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.net[0], self.net[2])]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()[batch_idx % 2]
            optimizer.zero_grad()
            self.manual_backward(torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    model, rule = Alternating(plain_net()), RWalk(1.0, window_steps=4, normalize=None)
    x, y = task(0)
    make_trainer(rule, EpochBoundaries(99), max_steps=4, max_epochs=9).fit(model, loader(x, y))
    assert rule.tasks == 0  # no boundary has closed them
    assert rule.steps == 4
    assert all(path.abs().sum() == 0 for path in rule.synapses.view["path"])
    assert all(score.sum() > 0 for score in rule.synapses.view["score"])


def test_an_infinite_gradient_costs_one_step() -> None:
    """What was known of the tasks before stays."""

    class Cleaning(Net):
        """Its own hook comes after the callbacks have seen the gradients."""

        def backward(self, loss: torch.Tensor) -> None:
            super().backward(loss)
            if self.broken:
                self.net[0].weight.grad[0, 0] = torch.nan
                self.broken = False

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.net[0].weight.grad.nan_to_num_(0.0)

    model, rule = Cleaning(plain_net()), RWalk(1.0, window_steps=2, normalize=None)
    model.broken = False
    fit_tasks(model, rule, tasks=1)
    before, fisher = (rule.synapses.view[field][0].clone() for field in ("score", "fisher"))
    model.broken = True
    fit_tasks(model, rule, tasks=1)
    view = rule.synapses.view
    assert all(t.isfinite().all() for field in view.fields.values() for t in field)
    assert view["score"][0][0, 0] >= before[0, 0] / 2 > 0
    assert view["fisher"][0][0, 0] > 0.9 * fisher[0, 0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"fisher_decay": 1.0}, "0 to below 1"),
        ({"decay": 1.5}, "0 to 1, or 'mean'"),
        ({"window_steps": 0}, "window_steps must be a whole number, at least 1"),
        ({"damping": -1.0}, "damping must be a finite number above 0"),
    ],
)
def test_arguments_that_cannot_work(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RWalk(1.0, **arguments, normalize=None)
