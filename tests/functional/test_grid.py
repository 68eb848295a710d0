"""Scores on a grid, smoothed and chosen from."""

from __future__ import annotations

import math

import pytest
import torch

from cl_callbacks.functional import best_on_grid, smoothed_on_grid


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


def test_without_a_finite_score_there_is_no_choice() -> None:
    with pytest.raises(ValueError, match="no score is finite"):
        best_on_grid(torch.tensor([math.nan, math.inf]))
