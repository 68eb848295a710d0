"""The chain of beakers in a Trainer."""

from __future__ import annotations

import csv
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn import functional as F

from cl_callbacks import EWC, MESU, BennaFusi, MetaplasticGate, SynapticIntelligence
from cl_callbacks.functional.beakers import flow_, flow_matrix
from tests.references.beakers import capacities, conductances, flow
from tests.small import Net, fit_tasks, loader, make_trainer, plain_net, task, weights


@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.1, momentum=0.9), torch.optim.AdamW])
@pytest.mark.parametrize("leak", [True, False])
def test_equals_a_plain_loop(optimizer: Any, leak: bool) -> None:
    torch.manual_seed(0)
    model, slow = Net(plain_net(), optimizer).double(), plain_net().double()
    slow.load_state_dict(model.net.state_dict())
    x, y = task(0)[0].double(), task(0)[1]
    rule = BennaFusi(4, 0.3, timescale_ratio=1.5, leak=leak)
    make_trainer(rule, max_epochs=4).fit(model, loader(x, y))

    stepping = optimizer(slow.parameters())
    c, g = capacities(4, 1.5), conductances(4, 0.3, 1.5, leak)
    levels = [[p.detach().clone() for _ in range(4)] for p in slow.parameters()]
    for _ in range(4):
        for start in range(0, len(x), 8):
            stepping.zero_grad()
            F.cross_entropy(slow(x[start : start + 8]), y[start : start + 8]).backward()
            stepping.step()
            for i, p in enumerate(slow.parameters()):
                levels[i] = flow([p.detach(), *levels[i][1:]], c, g)
                p.detach().copy_(levels[i][0])
    torch.testing.assert_close(weights(model), weights(slow), rtol=1e-8, atol=1e-10)
    for i in range(4):
        for k in (2, 3, 4):
            torch.testing.assert_close(rule.synapses.view[f"beaker_{k}"][i], levels[i][k - 1])


def test_what_was_learned_comes_back() -> None:
    """After a change that later steps undo, the deep beakers bring a part of it back."""
    model, rule = Net(plain_net(), partial(torch.optim.SGD, lr=0.0)), BennaFusi(5, 0.4, leak=False)
    make_trainer(rule).fit(model, loader(*task(0)))
    start = weights(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    make_trainer(rule, max_epochs=20).fit(model, loader(*task(0)))
    with torch.no_grad():
        torch._foreach_sub_(list(model.parameters()), [p - s for p, s in _pairs(model, start)])
    make_trainer(rule, max_epochs=20).fit(model, loader(*task(0)))
    recovered = (weights(model) - start).mean().item()
    assert 0.05 < recovered < 0.95


def _pairs(model: Net, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
    parameters = list(model.parameters())
    pieces = flat.split([p.numel() for p in parameters])
    return [(p.detach(), s.view_as(p)) for p, s in zip(parameters, pieces, strict=True)]


def test_timescales_stand_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rule, logger = BennaFusi(3, horizon_steps=160, name="slow"), CSVLogger(tmp_path)
    assert rule.timescales == pytest.approx([10, 40, 160])
    with caplog.at_level(logging.INFO):
        make_trainer(rule, logger=logger).fit(Net(), loader(*task(0)))
    assert "slow: timescales of the beakers in steps: [10.0, 40.0, 160.0]" in caplog.text
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        row = next(csv.DictReader(file))
    assert [float(row[f"cl/timescale_steps/slow/beaker_{k}"]) for k in (1, 2, 3)] == pytest.approx(
        [10, 40, 160]
    )


@pytest.mark.parametrize("order", [1, -1])
def test_another_rule_slows_the_flow(order: int) -> None:
    """A synapse that the other lets not move keeps its level: its flows are shut."""
    optimizer = partial(torch.optim.SGD, lr=0.1)
    torch.manual_seed(0)
    model = Net(plain_net(), optimizer)
    other = SynapticIntelligence(1.0, parameters=r"net\.0\.weight", name="important")
    rule = BennaFusi(3, 0.4, leak=True, gated_by="important")
    make_trainer(*[rule, other][::order], max_epochs=2).fit(model, loader(*task(0)))
    assert other.tasks == 1
    importance = other.synapses.view["importance"][0]
    importance.zero_()
    importance[0] = 1e9
    first = model.net[0].weight
    with torch.no_grad():
        first.add_(1.0)
        other.synapses.view["anchor"][0].copy_(first)
    before, deep = first.detach().clone(), [t[0].clone() for t in rule.synapses.view.fields.values()]
    make_trainer(*[rule, other][::order], limit_train_batches=1).fit(model, loader(*task(0)))
    view = rule.synapses.view
    # The weight itself still takes the optimizer's step.
    torch.testing.assert_close(first[0], before[0], rtol=0, atol=0.01)
    assert ((first[1:] - before[1:]).abs() > 0.1).float().mean() > 0.9
    for level, old in zip(view.fields.values(), deep, strict=True):
        torch.testing.assert_close(level[0][0], old[0], rtol=0, atol=1e-5)
        assert ((level[0][1:] - old[1:]).abs() > 1e-4).float().mean() > 0.9


def test_gates_are_the_plasticity_of_the_other() -> None:
    model, mesu, rule = Net(plain_net()), MESU(50, 0.3), BennaFusi(2, 0.4, gated_by="mesu", leak=False)
    seen = []

    class Noting(BennaFusi):
        def _gates(self, step: Any) -> Any:
            gates = super()._gates(step)
            seen.append((step.synapses.names, gates))
            return gates

    rule = Noting(2, 0.4, gated_by="mesu", leak=False)
    fit_tasks(model, rule, mesu, tasks=1)
    names, gates = seen[-1]
    assert names == mesu.synapses.view.names
    expected = mesu.plasticity(mesu.synapses.view, [])
    assert all(map(torch.equal, gates, expected))
    assert all((gate < 1).any() for gate in gates)


def test_weights_that_the_other_does_not_know_flow_freely() -> None:
    def train(**options: Any) -> Tensor:
        torch.manual_seed(0)
        model = Net(plain_net(), partial(torch.optim.SGD, lr=0.1))
        other = SynapticIntelligence(0.0, parameters=r"net\.2", name="important")
        make_trainer(BennaFusi(3, 0.4, **options), other, max_epochs=3).fit(model, loader(*task(0)))
        return weights(model)

    assert torch.equal(train(gated_by="important"), train())


def test_rules_that_cannot_gate_are_refused() -> None:
    with pytest.raises(
        MisconfigurationException, match=r"gated_by='ewk'.* that of 0.*\['ewc', 'metaplastic_gate'\]"
    ):
        fit_tasks(Net(), EWC(1.0), MetaplasticGate(), BennaFusi(gated_by="ewk"))
    pair = [EWC(1.0, parameters="weight"), EWC(1.0, parameters="bias")]
    with pytest.raises(MisconfigurationException, match=r"that of 2; there are \['ewc', 'ewc'\]"):
        fit_tasks(Net(), *pair, BennaFusi(gated_by="ewc"))
    with pytest.raises(MisconfigurationException, match="there are none"):
        fit_tasks(Net(), BennaFusi(gated_by="benna_fusi"), BennaFusi(name="other"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"beakers": 0}, "beakers must be a whole number from 1 to 64"),
        ({"beakers": 2.5}, "beakers must be a whole number"),
        ({"horizon_steps": float("inf")}, "horizon_steps must be a finite number"),
        ({"coupling": 0.6}, "coupling must be from 0 to 0.5"),
        ({"coupling": 0.3, "timescale_ratio": 1.0}, "coupling must be from 0 to 0.25"),
        ({"coupling": -0.1}, "coupling must be"),
        ({"timescale_ratio": 0.5}, "timescale_ratio must be"),
        ({"coupling": 0.1, "horizon_steps": 100}, "give one of them"),
        ({"beakers": 6, "horizon_steps": 100}, "at least 2048 steps slow"),
    ],
)
def test_arguments_that_cannot_work(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BennaFusi(**arguments)
    BennaFusi(beakers=6, horizon_steps=2048)


def test_deep_beakers_are_not_lost_to_rounding() -> None:
    """A weight of single precision, held 1 % up: six beakers as in exact arithmetic, after 20,000 steps."""
    rule = BennaFusi(6, 1e-3)
    weight = torch.nn.Parameter(torch.ones(64))
    view = rule.synapses.place({"weight": weight}, ["weight"])
    levels = [view.parameters, *(view[level] for level in rule.levels)]
    c, g = capacities(6, 2.0), conductances(6, 1e-3, 2.0, True)
    g[-1] = 0.0
    with torch.no_grad():
        for _ in range(20_000):
            weight.fill_(1.01)
            flow_(levels, c, g, hold_first=True)
    step = flow_matrix(c, g)
    step[0] = torch.eye(6)[0]
    start = torch.ones(6, dtype=torch.float64)
    start[0] = weight[0].item()
    exact = torch.linalg.matrix_power(step, 20_000) @ start
    found = torch.stack([level[0][0].detach().double() for level in levels])
    torch.testing.assert_close(found - 1, exact - 1, rtol=1e-3, atol=0)


@pytest.mark.parametrize("rule", [BennaFusi(), MESU(10)])
def test_weights_of_half_precision_are_warned_of(rule: Any) -> None:
    with pytest.warns(UserWarning, match=r"smaller than the rounding .*net\.0\.weight"):
        fit_tasks(Net(), rule, tasks=1, precision="bf16-true")
