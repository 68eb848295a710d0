"""How many values say as much as one."""

from __future__ import annotations

import copy
import math
import random

import pytest

from cl_callbacks.drift.dependence import Dependence
from tests.drift.traces import autoregressive
from tests.references.dependence import dependence


def scores(rho: float, steps: int, seed: int) -> list[float]:
    return [math.log(x) for x in autoregressive(rho, steps, seed, spread=1.0)]


def factor(values: list[float]) -> float:
    found = Dependence()
    for value in values:
        found.add(value)
    return found.factor


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_equals_the_definition_until_old_values_are_forgotten(rho: float) -> None:
    values = scores(rho, 500, seed=1)
    for steps in (1, 7, 8, 40, 100, 500):
        assert factor(values[:steps]) == pytest.approx(dependence(values[:steps]))


def test_independent_values_count_in_full() -> None:
    found = [factor(scores(0.0, steps, seed)) for seed in range(20) for steps in (60, 300, 2000)]
    assert sum(value > 1 for value in found) <= 6
    assert max(found) < 3


@pytest.mark.parametrize("rho", [0.5, 0.7, 0.9])
def test_dependent_ones_count_as_the_variance_of_long_sums_says(rho: float) -> None:
    found = [factor(scores(rho, 2000, seed)) for seed in range(20)]
    assert sum(found) / 20 == pytest.approx((1 + rho) / (1 - rho), rel=0.3)


def test_what_has_ended_is_forgotten() -> None:
    assert factor(scores(0.9, 500, 0)) > 5
    assert factor(scores(0.9, 500, 0) + scores(0.0, 4000, 1)) < 2


def test_a_change_of_level_and_a_slow_trend_are_no_dependence() -> None:
    numbers = random.Random(0)
    values = [numbers.gauss(-2 * i / 1000, 1) for i in range(1000)]
    assert factor(values) < 1.5


def test_values_that_are_held_count_with_the_next_or_never() -> None:
    values = scores(0.9, 300, 0)
    found = Dependence()
    for i, value in enumerate(values):
        found.add(value, hold=i % 3 < 2)
    assert found.factor == factor(values)
    before = found.state_dict()
    for _ in range(50):
        found.add(5.0, hold=True)
    found.forget_held()
    assert found.state_dict() == before


def test_goes_on_from_its_state() -> None:
    values = scores(0.8, 700, 0)
    whole, first, second = Dependence(), Dependence(), Dependence()
    for i, value in enumerate(values):
        whole.add(value, hold=i % 5 == 1)
        if i == 402:
            second.load_state_dict(copy.deepcopy(first.state_dict()))
        (first if i < 402 else second).add(value, hold=i % 5 == 1)
    assert second.state_dict() == whole.state_dict()
