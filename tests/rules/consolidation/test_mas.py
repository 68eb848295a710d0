"""Memory aware synapses: the closed form, and a loop over samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cl_callbacks import MAS, EpochBoundaries
from tests.gradients.networks import NETWORKS
from tests.references.sensitivity import mas_importance
from tests.small import FEATURES, Net, fit_tasks, loader, make_trainer, plain_net, task


def test_a_linear_model() -> None:
    """f = Wx: Omega_ij = mean |2 (Wx)_i x_j|."""
    model, rule = (
        Net(nn.Linear(FEATURES, 3, bias=False), lambda p: torch.optim.SGD(p, lr=0.0)),
        MAS(1.0, normalize=None),
    )
    x, y = task(0)
    make_trainer(rule).fit(model, loader(x, y))
    outputs = (x @ model.net.weight.T).detach()
    expected = (2 * outputs[:, :, None] * x[:, None, :]).abs().mean(0)
    torch.testing.assert_close(rule.synapses.view["importance"][0], expected)


@pytest.mark.parametrize("norm", ["squared", "l2"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow")
def test_equals_a_loop_over_samples(name: str, norm: str) -> None:
    """Every way to a per-sample gradient, with absolute values; labels are never looked at."""
    torch.manual_seed(0)
    build, inputs = NETWORKS[name]
    net, x = build().double().eval(), inputs()
    x = x.double() if x.is_floating_point() else x

    class Unlabelled(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self(batch).square().mean()

    rule = MAS(1.0, norm=norm, samples=None, state_dtype=torch.float64, normalize=None)
    model = Unlabelled(net, lambda p: torch.optim.SGD(p, lr=0.0))
    data = torch.utils.data.DataLoader(x, batch_size=4)
    make_trainer(rule, precision="64-true").fit(model, data)
    expected = mas_importance(net.eval(), x, norm=norm)
    for key, found in zip(rule.synapses.view.names, rule.synapses.view["importance"], strict=True):
        torch.testing.assert_close(found, expected[key.removeprefix("net.")], rtol=1e-9, atol=1e-12)


def test_the_penalty_has_no_one_half() -> None:
    """One weight moved by delta: the penalty is strength times importance times delta squared."""
    model, rule = Net(plain_net()), MAS(3.0, normalize=None)
    fit_tasks(model, rule, tasks=1)
    view = rule.synapses.view
    with torch.no_grad():
        view.parameters[0][1, 2] += 0.25
    expected = 3.0 * view["importance"][0][1, 2] * 0.25**2
    torch.testing.assert_close(rule.penalty(view), expected)
    pull = [torch.zeros_like(p) for p in view.parameters]
    rule.pull(view, pull)
    torch.testing.assert_close(pull[0][1, 2], 2 * 3.0 * view["importance"][0][1, 2].detach() * 0.25)


def test_the_average_over_tasks() -> None:
    kept: list[list[torch.Tensor]] = []

    class Keep(MAS):
        def estimate(self, *args: Any) -> Any:
            found = super().estimate(*args)
            kept.append([t.clone() for t in found])
            return found

    rule = Keep(1.0, decay="mean", normalize=None)
    make_trainer(rule, EpochBoundaries(1), max_epochs=4).fit(Net(plain_net()), loader(*task(0)))
    for i, found in enumerate(rule.synapses.view["importance"]):
        torch.testing.assert_close(found, torch.stack([task[i] for task in kept]).mean(0))


def test_no_task_gives_a_synapse_more_than_allowed() -> None:
    free, capped = MAS(1.0, normalize=None), MAS(1.0, max_importance=0.01, normalize=None)
    for rule in (free, capped):
        torch.manual_seed(0)
        fit_tasks(Net(plain_net()), rule, tasks=2)
    assert max(t.max() for t in free.synapses.view["importance"]) > 0.02
    assert max(t.max() for t in capped.synapses.view["importance"]) == pytest.approx(0.02)


def test_arguments_that_cannot_work() -> None:
    with pytest.raises(ValueError, match="norm must be 'squared' or 'l2'"):
        MAS(1.0, norm="l1", normalize=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        MAS(1.0, samples=0, normalize=None)
