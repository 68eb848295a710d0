"""A loss or a gradient that is not finite leaves no trace in what a rule remembers."""

from __future__ import annotations

import pytest
import torch

from benchmarks.bad_batches import KINDS, RULES, WAYS, inject, possible
from cl_callbacks.functional.averaging import average_
from cl_callbacks.functional.beakers import capacities, conductances, flow_
from cl_callbacks.functional.path_integral import add_score_


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", WAYS)
def test_training_goes_on_and_the_state_is_as_if_a_bad_batch_had_not_come(way: str, rule: str) -> None:
    kinds = [kind for kind in KINDS if possible(way, kind)]
    kind = kinds[list(RULES).index(rule) % len(kinds)]
    assert inject(rule, way, kind, bad=2) == (2, [])


@pytest.mark.sweep
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", WAYS)
def test_every_kind_of_bad_batch_in_every_way(way: str, rule: str) -> None:
    for seed, kind in enumerate(kind for kind in KINDS if possible(way, kind)):
        assert inject(rule, way, kind, bad=6, seed=100 * seed) == (6, [])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_average_of_weights_leaves_out_a_lost_one(bad: float) -> None:
    found = [torch.tensor([0.3, 0.3])]
    average_(found, [torch.tensor([bad, 2.0])], [0.1])
    assert found[0][0] == 0.3
    assert found[0][1] > 0.4


def test_beakers_flow_on_as_if_a_lost_weight_were_level_with_the_next() -> None:
    lost = [torch.tensor([value]) for value in (torch.nan, 2.0, 5.0)]
    level = [torch.tensor([value]) for value in (2.0, 2.0, 5.0)]
    for levels in (lost, level):
        flow_([[t] for t in levels], capacities(3), conductances(3, 0.5))
    assert lost[0].isnan()
    assert torch.equal(lost[1], level[1])
    assert torch.equal(lost[2], level[2])
    assert lost[1] != 2.0


@pytest.mark.parametrize("lost", [torch.nan, torch.inf])
def test_a_window_stays_open_while_a_weight_is_lost(lost: float) -> None:
    score, path, start = [torch.ones(2)], [torch.full((2,), 3.0)], [torch.zeros(2)]
    add_score_(score, path, [torch.ones(2)], start, [torch.tensor([lost, 1.0])], damping=0.5)
    assert score[0].tolist() == [1.0, 4.0]
    assert path[0].tolist() == [3.0, 0.0]
    assert start[0].tolist() == [0.0, 1.0]
