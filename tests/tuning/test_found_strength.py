"""The choice among scores, in words and in a figure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cl_callbacks import FoundStrength
from cl_callbacks.observation.figures import strength_curve
from tests.observation.drawn import boxes, cut_off, overlaps


def found(old: tuple[float, ...], new: tuple[float, ...], mode: Any = "max") -> FoundStrength:
    factors = tuple(10.0**k for k in range(len(old)))
    return FoundStrength("val_acc", mode, factors, old, new, 0.95, ("ewc", "mas"), (2.0, 0.5))


def test_the_best_average_and_a_strength_for_each_rule() -> None:
    middle = found((0.1, 0.5, 0.9, 0.9), (0.9, 0.9, 0.8, 0.1))
    assert middle.average == pytest.approx((0.5, 0.7, 0.85, 0.5))
    assert (middle.best, middle.factor, middle.strengths) == (2, 100.0, (200.0, 50.0))
    assert middle.advice is None
    assert str(middle).startswith("strength of ewc 200, mas 50 (factor 100) · val_acc 0.9 on the first task")


def test_a_strength_that_only_the_second_task_bears_is_not_for_ten() -> None:
    old, new = (0.5, 0.8, 0.9, 0.9, 0.9), (0.9, 0.9, 0.9, 0.8, 0.2)
    assert found(old, new).factor == 100.0
    assert replace(found(old, new), tasks=10).factor == 10.0


def test_no_more_than_was_tried_adds_up_over_the_sequence() -> None:
    rising = found((0.1, 0.3, 0.5, 0.7, 0.9), (0.9,) * 5)
    assert [replace(rising, tasks=tasks).factor for tasks in (2, 11, 12, 2000)] == [1e4, 1e3, 1e2, 1.0]


def test_it_says_that_higher_factors_which_may_not_be_taken_score_better() -> None:
    rising = found((0.1, 0.3, 0.5, 0.7, 0.9), (0.9,) * 5)
    said = "higher factors than 1000 score better, and are not taken, since the pulls of 11 tasks add up"
    assert said in str(replace(rising, tasks=11).advice)
    falling = found((0.1, 0.3, 0.5, 0.9, 0.2), (0.9,) * 5)
    assert replace(falling, tasks=11).advice is None


def test_at_an_end_it_says_which_factors_to_add() -> None:
    lowest, highest = found((0.9, 0.5, 0.1), (0.9, 0.5, 0.1)), found((0.1, 0.5, 0.9), (0.1, 0.5, 0.9))
    assert lowest.best == 0 and "is the lowest" in str(lowest.advice) and "to 0.1" in str(lowest.advice)
    assert highest.best == 2 and "is the highest" in str(highest.advice) and "to 1e+03" in str(highest.advice)


def test_lower_is_better_with_min() -> None:
    assert found((3.0, 1.0, 3.0), (3.0, 1.0, 3.0), "min").best == 1


def test_no_finite_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="no score is finite"):
        _ = found((float("nan"),) * 3, (1.0,) * 3).best


def test_the_figure_has_both_tasks_and_their_average() -> None:
    result = found((0.1, 0.5, 0.9, 0.9), (0.9, 0.9, float("nan"), 0.1))
    figure = result.figure()
    (axes,) = figure.axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines[:3]}
    assert lines["old task"] == list(result.old)
    assert lines["average"][:2] == pytest.approx(result.average[:2])
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "10", "100", "1000"]
    found_boxes = boxes(figure)
    assert not overlaps(found_boxes) and not cut_off(found_boxes, figure)


def test_the_default_factors_have_room() -> None:
    factors = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    figure = FoundStrength("val_acc", "max", factors, (0.5,) * 9, (0.6,) * 9, 0.7, ("ewc",), (1.0,)).figure()
    assert not overlaps(boxes(figure))


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 factors, 1, 2 and 2 scores"):
        strength_curve([1.0, 2.0], [0.5], [0.5, 0.6], [0.5, 0.6], best=0)
