"""Units of networks of which not every batch runs every layer, and of steps that do more than train."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks import ContinualBackprop, EpochBoundaries, ReDo
from cl_callbacks.rules.renewal.unit_search import Found, together
from cl_callbacks.rules.renewal.units import Units
from tests.rules.renewal.test_unit_rules import rectified
from tests.small import CLASSES, FEATURES, Net, loader, make_trainer, task


class Still(Net):
    """A network with blocks and heads whose weights only the rules change."""

    def __init__(self, run: Callable[[Still, Tensor, int], Tensor]) -> None:
        super().__init__(rectified(), lambda p: torch.optim.SGD(p, lr=0.0))
        self.enter = nn.Linear(FEATURES, 8)
        self.heads = nn.ModuleList([nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)])
        self.up = nn.ModuleList([nn.Linear(8, 5) for _ in range(3)])
        self.down = nn.ModuleList([nn.Linear(5, 8) for _ in range(3)])
        self.run = run

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.run(self, batch[0], batch_idx), batch[1])


def alternating(net: Still, x: Tensor, batch_idx: int) -> Tensor:
    return net.heads[batch_idx % 2](net.enter(x).relu())


def with_blocks_by_chance(net: Still, x: Tensor, batch_idx: int) -> Tensor:
    h = net.enter(x)
    for up, down in zip(net.up, net.down, strict=True):
        if float(torch.rand(())) < 0.5:
            h = h + down(up(h).relu())
    return net.heads[0](h)


def with_one_block(net: Still, x: Tensor, batch_idx: int) -> Tensor:
    h, block = net.enter(x), batch_idx % 3
    return net.heads[0](h + net.down[block](net.up[block](h).relu()))


def with_what_no_search_meets(net: Still, x: Tensor, batch_idx: int) -> Tensor:
    h = net.enter(x).relu()
    return net.heads[0](h) + (net.heads[1](h) if torch.is_grad_enabled() else 0.0)


def train(run: Callable[[Still, Tensor, int], Tensor], rule: Any, batches: int = 12) -> Still:
    torch.manual_seed(0)
    model = Still(run)
    make_trainer(rule, EpochBoundaries(1)).fit(model, loader(*task(0, samples=8 * batches)))
    return model


def test_heads_of_some_batches_read_the_units_too() -> None:
    rule = ReDo(1.2, every_n_steps=1)
    model = train(alternating, rule)
    assert [units.outgoing for units in rule.units] == [("heads.0.weight", "heads.1.weight")]
    silent = [(head.weight == 0).all(0) for head in model.heads]
    assert silent[0].any() and torch.equal(*silent)


@pytest.mark.parametrize("run", [with_blocks_by_chance, with_one_block])
def test_blocks_that_run_in_some_batches_are_all_met(run: Callable[[Still, Tensor, int], Tensor]) -> None:
    rule = ContinualBackprop(0.0)
    train(run, rule, batches=40)
    stream = rule.units[0]
    assert set(stream.layers) == {"enter", "down.0", "down.1", "down.2"}
    assert set(stream.outgoing) == {"up.0.weight", "up.1.weight", "up.2.weight", "heads.0.weight"}
    assert len(rule.units) == 4


def test_a_layer_that_no_search_meets_is_said_and_given_up() -> None:
    searches = []

    def run(net: Still, x: Tensor, batch_idx: int) -> Tensor:
        if not torch.is_grad_enabled():
            searches.append(batch_idx)
        return with_what_no_search_meets(net, x, batch_idx)

    with pytest.warns(UserWarning, match=r"heads\.1 runs now and then"):
        train(run, ReDo())
    assert set(searches) == set(range(5))


def test_heads_of_earlier_tasks_are_known() -> None:
    """The second task runs its own head in the forward, and the first one's besides, unseen by searches."""

    def run(net: Still, x: Tensor, batch_idx: int) -> Tensor:
        h, task = net.enter(x).relu(), net.current_epoch
        return net.heads[task](h) + (net.heads[0](h) if task and torch.is_grad_enabled() else 0.0)

    torch.manual_seed(0)
    rule = ReDo()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*runs now and then")
        make_trainer(rule, EpochBoundaries(1), max_epochs=2).fit(Still(run), loader(*task(0, samples=80)))
    assert set(rule.units[0].outgoing) == {"heads.0.weight", "heads.1.weight"}


def test_searches_of_which_one_leaves_units_out() -> None:
    shared, own = ("a.weight",), Units("a", 2, ("a.weight",), (), ("b.weight",))
    read = Found([own], {"b": "read by sum"})
    units, left_out = together([read, Found([], {"a": "read by norm", "b": "read by nothing"})])
    assert (units, left_out) == ([], {"a": "read by norm", "b": "read by sum"})
    assert together([read, Found([], {"a": "read by nothing"})]).units == [own]
    other = Units("c", 3, ("c.weight",), (), ("b.weight",))
    assert together([read, Found([other], {})]).left_out["c"] == "b.weight reads others too"
    wider = Units("a", 2, shared, (), ("d.weight",), columns=9)
    assert together([read, Found([wider], {})]).left_out["a"] == "read as channels and as numbers"


def test_units_that_meet_in_a_third_search() -> None:
    first, second = (Units(n, 2, (f"{n}.weight",), (), (f"{n}r.weight",)) for n in "ab")
    both = Units("a", 2, ("a.weight", "b.weight"), ("norm",), ("c.weight",))
    [units] = together([Found([first], {}), Found([second], {}), Found([both], {})]).units
    expected = ("a.weight", "b.weight"), ("norm",), ("ar.weight", "br.weight", "c.weight")
    assert (units.incoming, units.norms, units.outgoing) == expected


def test_a_step_that_logs_activations_and_adds_a_penalty() -> None:
    class Watched(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            hidden = self.net[:2](batch[0])
            self.log("activity", hidden.detach().abs().mean())
            penalty = sum(p.abs().sum() for p in self.parameters())
            return F.cross_entropy(self.net[2](hidden), batch[1]) + 1e-3 * penalty

    rule = ReDo(1.0, every_n_steps=1)
    make_trainer(rule, EpochBoundaries(1)).fit(Watched(rectified()), loader(*task(0)))
    assert rule.renewed


def test_what_is_frozen_stays_beside_new_units() -> None:
    net = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))
    nn.init.constant_(net[1].weight, 2.0)
    model, frozen = Net(net), [net[1].weight, net[1].bias, net[3].bias]
    for parameter in frozen:
        parameter.requires_grad_(False)
    before, rule = [p.clone() for p in frozen], ContinualBackprop(0.5, maturity=0)
    make_trainer(rule, EpochBoundaries(1)).fit(model, loader(*task(0)))
    assert rule.renewed
    assert all(torch.equal(p, q) for p, q in zip(frozen, before, strict=True))
