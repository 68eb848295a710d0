"""Raw values in, changes and their onsets out."""

from __future__ import annotations

import copy
import math
import random
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from cl_callbacks.drift import CUSUM, RiseMonitor
from cl_callbacks.drift.normal_scores import NormalScores
from tests.drift.traces import autoregressive, by_class, falling, noisy, sine


def alarms(trace: list[float], monitor: RiseMonitor | None = None) -> list[int]:
    monitor = monitor or RiseMonitor()
    indices = []
    for i, x in enumerate(trace):
        monitor.update(x)
        if monitor.drift_detected:
            indices.append(i)
            monitor.restart()
    return indices


def test_twenty_falling_streams_without_a_change_are_silent() -> None:
    assert sum(len(alarms(falling(seed % 4, seed))) for seed in range(20)) <= 2


@pytest.mark.parametrize("seed", range(5))
def test_at_rest_false_alarms_are_rare(seed: int) -> None:
    """Also where the noise is skewed: mostly small, with a hard batch now and then."""
    numbers = random.Random(seed)
    skewed = [1.0 if numbers.random() < 0.1 else 0.01 * math.exp(numbers.gauss(0, 0.5)) for _ in range(4000)]
    assert len(alarms(skewed)) <= 1
    assert len(alarms(noisy([(0.1, 4000)], seed=seed))) <= 1


@pytest.mark.parametrize(
    ("stream", "most"),
    [
        (lambda seed: autoregressive(0.5, 5000, seed), 2),
        (lambda seed: autoregressive(0.7, 5000, seed), 3),
        (lambda seed: autoregressive(0.9, 5000, seed), 8),
        (lambda seed: sine(100, 5000, seed), 4),
        (lambda seed: sine(200, 5000, seed), 4),
        (lambda seed: by_class(100, 5000, seed), 2),
        (lambda seed: by_class(200, 5000, seed), 5),
    ],
    ids=["rho .5", "rho .7", "rho .9", "sine 100", "sine 200", "classes 100", "classes 200"],
)
def test_losses_that_depend_on_each_other_raise_few_alarms(stream: Any, most: int) -> None:
    """In four streams of 5,000; before the dependence counted there were some 20 to 200."""
    assert sum(len(alarms(stream(seed))) for seed in range(4)) <= most


@pytest.mark.parametrize(("rise", "latest"), [(4.0, 40), (8.0, 15)])
def test_a_large_rise_is_found_soon_among_dependent_losses(rise: float, latest: int) -> None:
    """Ranks alone would take 20 values for either, since they end at the highest recent one."""
    delays = []
    for seed in range(9):
        trace = autoregressive(0.5, 700, seed, spread=1.0)
        trace[500:] = [x * math.exp(rise) for x in trace[500:]]
        delays.append(next((i - 500 for i in alarms(trace) if i >= 500), 200))
    assert sorted(delays)[4] < latest


def test_dependence_is_remembered_over_restarts_and_divides_the_evidence() -> None:
    monitor = RiseMonitor()
    for x in autoregressive(0.9, 1000, seed=0):
        monitor.update(x)
    known = monitor.dependence
    assert known > 4
    monitor.restart()
    assert monitor.dependence == known
    assert monitor.score == 0.0


@pytest.mark.parametrize("cut", [30, 400, 503, 506])
def test_goes_on_from_its_state_among_dependent_losses(cut: int) -> None:
    trace = autoregressive(0.5, 700, seed=0, spread=1.0)
    trace[500:] = [x * math.exp(6.0) for x in trace[500:]]
    whole, first, second = RiseMonitor(), RiseMonitor(), RiseMonitor()
    for x in trace[:cut]:
        first.update(x)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert alarms(trace[:cut]) + [cut + i for i in alarms(trace[cut:], second)] == alarms(trace, whole)
    assert second.state_dict() == whole.state_dict()


def test_short_tasks_are_found_where_losses_are_taken_to_be_independent() -> None:
    numbers = random.Random(1)
    tasks = [
        (0.05 + 2.5 * math.exp(-(i % 100) / 30)) * math.exp(0.3 * numbers.gauss(0, 1)) for i in range(2000)
    ]
    found = alarms(tasks, RiseMonitor(independent=True))
    assert [i // 100 for i in found] == list(range(1, 20))
    assert len(alarms(tasks)) < 10  # they look like a period, as docs/boundaries.md says


def test_alarms_of_other_detectors_wait_for_the_evidence_too() -> None:
    class MeanOfTen:
        def __init__(self) -> None:
            self.recent: list[float] = []

        @property
        def drift_detected(self) -> bool:
            return sum(self.recent) > 12.0

        def update(self, x: float) -> None:
            self.recent = [*self.recent, x][-10:]

    assert len(alarms(autoregressive(0.9, 5000, seed=0), RiseMonitor(MeanOfTen()))) <= 5
    assert len(alarms(noisy([(0.1, 300), (1.0, 30)]), RiseMonitor(MeanOfTen()))) == 1


def test_a_single_outlier_is_no_change() -> None:
    trace = noisy([(0.1, 150), (100.0, 1), (0.1, 150), (100.0, 2), (0.1, 150)])
    assert alarms(trace) == []


def test_a_gradual_rise_is_found_while_it_grows() -> None:
    ramp = [(0.1 * math.exp(3.0 * i / 100), 1) for i in range(100)]
    (alarm,) = alarms(noisy([(0.1, 200), *ramp]), RiseMonitor(warm_up=100))
    assert 210 < alarm < 260


def test_what_is_usual_stays_while_a_rise_is_suspected() -> None:
    """A detector that takes its time still hears how far the values are from what they were."""
    heard: list[float] = []

    class Slow:
        drift_detected = False

        def update(self, x: float) -> None:
            heard.append(x)

        def __deepcopy__(self, memo: Any) -> Slow:
            return self

    monitor = RiseMonitor(Slow(), window=100)
    for x in noisy([(0.1, 200), (1.0, 90)]):
        monitor.update(x)
    assert min(heard[-85:]) > 1.5
    # In the end the rise is the new normal.
    for x in noisy([(1.0, 250)]):
        monitor.update(x)
    assert abs(sum(heard[-100:]) / 100) < 0.5
    assert monitor.score < 12.0


def test_an_alarm_without_a_rise_is_none() -> None:
    class Always:
        drift_detected = True

        def update(self, x: float) -> None: ...

    assert alarms(noisy([(2.0, 60), (0.5, 60), (0.1, 30)]), RiseMonitor(Always())) == []
    assert alarms(noisy([(0.1, 60), (1.0, 10)]), RiseMonitor(Always()))[0] in (61, 62)


def test_no_alarm_while_warming_up() -> None:
    trace = noisy([(0.1, 60), (1.0, 30), (0.1, 100)])
    assert 60 < alarms(trace, RiseMonitor(warm_up=50))[0] < 75
    assert alarms(trace, RiseMonitor(warm_up=90)) == []


def test_values_that_are_not_positive() -> None:
    assert alarms([*noisy([(0.1, 100)]), 0.0, 0.0, 0.0, *noisy([(0.1, 100)])]) == []
    for unit in (1.0, 1e-4, 1e4):
        negative = [unit * (x - 5.0) for x in noisy([(1.0, 200), (4.0, 20)], spread=0.1)]
        monitor = RiseMonitor()
        assert len(alarms(negative, monitor)) == 1
        assert not monitor.logarithm
    assert len(alarms([-1.0] * 100 + [-0.5] * 20)) == 1


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_ranks_and_standard_normal_whatever_the_values(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    values = (numbers.normal(size=3000), numbers.exponential(size=3000) ** 3, numbers.integers(0, 5, 3000))
    found, scores = [], NormalScores(window=100, warm_up=30)
    for i, value in enumerate(values[seed]):
        z = scores(float(value))
        scores.add(float(value))
        recent = values[seed][max(0, i - 100) : i]
        if i < 30:
            assert z is None
            continue
        rank = np.mean([*(recent < value), *(recent <= value)]) * len(recent)
        assert z == pytest.approx(NormalDist().inv_cdf((rank + 0.5) / (len(recent) + 1)))
        found.append(z)
    assert np.mean(found) == pytest.approx(0.0, abs=0.06)
    # Of only five different values some are in the middle of many equal ones.
    assert np.std(found) == pytest.approx(0.87 if seed == 2 else 1.0, abs=0.06)


def test_what_is_nearer_than_the_resolution_counts_as_equal() -> None:
    scores = NormalScores(warm_up=2, resolution=0.02)
    for x in (1.0, 1.0):
        scores.add(x)
    assert scores(1.01) == scores(0.99) == 0.0
    assert scores(1.05) > 0.5


def test_values_that_are_held_join_what_is_usual_later() -> None:
    scores = NormalScores(warm_up=2)
    for x, hold in ((1.0, False), (2.0, False), (9.0, True), (9.0, True)):
        scores.add(x, hold)
    assert list(scores.recent) == [1.0, 2.0]
    scores.add(1.5)
    assert list(scores.recent) == [1.0, 2.0, 9.0, 9.0, 1.5]


@pytest.mark.parametrize("detector", [object(), CUSUM, 3, type("Half", (), {"update": print})()])
def test_a_detector_without_the_protocol(detector: Any) -> None:
    with pytest.raises(TypeError, match=r"an object with a method update\(x\) and, after it, drift_detected"):
        RiseMonitor(detector)


@pytest.mark.parametrize("arguments", [{"warm_up": 1}, {"window": 5}])
def test_arguments_that_cannot_work(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="whole number"):
        RiseMonitor(**arguments)
