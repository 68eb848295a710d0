"""Scores on a grid, smoothed and chosen from."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from cl_callbacks.functional import as_importance_adds_up, best_on_grid, smoothed_on_grid


def test_each_score_counts_twice_its_neighbours_once() -> None:
    found = smoothed_on_grid(torch.tensor([1.0, 2.0, 6.0, 0.0, 4.0]))
    expected = [1.0, (1 + 4 + 6) / 4, (2 + 12 + 0) / 4, (6 + 0 + 4) / 4, (12 + 0) / 4]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_what_is_linear_stays_within_the_grid_and_constants_everywhere() -> None:
    line = torch.arange(7, dtype=torch.float64)
    assert torch.equal(smoothed_on_grid(line)[:-1], line[:-1])
    assert torch.equal(smoothed_on_grid(torch.full((5,), 0.5)), torch.full((5,), 0.5).double())


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.1, 0.9, 0.1, 0.7, 0.7, 0.7], 4),  # a plateau against one lucky run
        ([0.2, 0.4, 0.9, 0.4, 0.2], 2),
        ([0.9, 0.5, 0.1], 0),
        ([0.1, 0.5, 0.9], 2),
        ([0.3] * 5, 0),  # of equals the weaker
        ([1 / 3, 1 / 3 + 1e-9, 1 / 3], 0),
        ([0.0, 0.0], 0),
        ([math.nan, 0.5, 0.6, 0.6, 0.5], 2),
        ([0.7, 0.7, 0.7, math.nan], 0),
        ([0.5, math.inf, 0.4, 0.4], 0),
        ([0.7, 0.8, 0.6], 1),
        ([0.1, 0.8, math.nan, 0.8, 0.8, 0.6], 4),  # not beside the one that diverged
    ],
)
def test_the_choice(scores: list[float], best: int) -> None:
    assert best_on_grid(torch.tensor(scores)) == best
    assert best_on_grid(-torch.tensor(scores), higher_is_better=False) == best


@pytest.mark.parametrize(
    ("scores", "usual", "best"),
    [
        ([0.5] * 5, 2, 2),  # nothing speaks against what is usual
        ([0.5, 0.5, 0.5, 0.502, 0.502], 1, 1),  # nor does a difference as small as noise
        ([0.5, 0.5, 0.5, 0.51, 0.51], 1, 3),
        ([0.1, 0.2, 0.5, 0.9, 0.9], 0, 4),
        ([0.9, 0.9, 0.9, 0.2, 0.1], 4, 1),  # no farther than the scores demand
        ([0.9, 0.9, 0.1, 0.1, 0.9, 0.9], 2, 0),
        ([0.9, 0.9, 0.1, 0.9, 0.9], 2, 0),  # of two that are equally near the weaker
    ],
)
def test_the_nearest_to_the_usual(scores: list[float], usual: int, best: int) -> None:
    assert best_on_grid(torch.tensor(scores), usual=usual) == best


def test_only_the_first_may_be_chosen() -> None:
    assert best_on_grid(torch.tensor([0.1, 0.5, 0.5, 0.9, 0.9]), choice=3) == 2
    assert best_on_grid(torch.tensor([0.5, math.nan, 0.9]), choice=2) == 0


def test_pulls_of_all_earlier_tasks_add_up() -> None:
    factors, scores = [1.0, 3.0, 9.0, 27.0], [0.9, 0.8, 0.6, 0.1]

    def between(f: float) -> float:
        for (a, at_a), (b, at_b) in pairwise(zip(factors, scores, strict=True)):
            if a <= f <= b:
                share = (math.log(f) - math.log(a)) / (math.log(b) - math.log(a))
                return at_a + share * (at_b - at_a)
        return scores[-1]

    expected = [sum(between(k * f) for k in range(1, 10)) / 9 for f in factors]
    assert as_importance_adds_up(factors, scores, tasks=10) == pytest.approx(expected)
    assert as_importance_adds_up(factors, scores, tasks=2) == scores


def test_a_run_that_diverged_tells_nothing_of_others() -> None:
    found = as_importance_adds_up([1.0, 2.0, 4.0], [0.9, math.nan, 0.5], tasks=3)
    assert found[0] == pytest.approx((0.9 + 0.7) / 2) and math.isnan(found[1]) and found[2] == 0.5
    assert all(map(math.isnan, as_importance_adds_up([1.0, 2.0], [math.nan, math.inf], tasks=3)))


def test_without_a_finite_score_there_is_no_choice() -> None:
    with pytest.raises(ValueError, match="no score is finite"):
        best_on_grid(torch.tensor([math.nan, math.inf]))
