"""Alarms against the changes that there were."""

from __future__ import annotations

import math

from cl_callbacks.drift import score_boundaries


def test_each_change_is_found_once_and_in_time() -> None:
    score = score_boundaries([100, 103, 151, 250, 399], changes=[100, 200, 300, 390], tolerance=50)
    assert score.false_alarms == 3  # a second one for the first change, one too late, one after 50 steps
    assert (score.precision, score.recall, score.delay) == (2 / 5, 2 / 4, 4.5)


def test_an_alarm_before_its_change_is_false() -> None:
    assert score_boundaries([99], changes=[100], tolerance=50).false_alarms == 1


def test_where_there_is_nothing() -> None:
    score = score_boundaries([], changes=[100], tolerance=50)
    assert score[:2] == (1.0, 0.0)
    assert math.isnan(score.delay)
    assert score_boundaries([5], changes=[], tolerance=50)[:2] == (0.0, 1.0)
