"""All detectors behind one protocol: the package's own and river's."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest

from cl_callbacks.drift import CUSUM, RiseMonitor
from tests.drift.traces import falling, noisy
from tests.references.cusum import alarms, largest_suffix

river = pytest.importorskip("river.drift", reason="river is not installed (extra 'drift')")

DETECTORS: dict[str, Callable[[], Any]] = {
    "cusum": CUSUM,
    "adwin": river.ADWIN,
    "kswin": lambda: river.KSWIN(alpha=1e-4, seed=0),
    "page-hinkley": lambda: river.PageHinkley(threshold=20.0, delta=0.5, mode="up"),
}
every_detector = pytest.mark.parametrize("name", DETECTORS)


def found(monitor: RiseMonitor, trace: list[float]) -> list[tuple[int, int]]:
    """Index of each alarm and of the onset that it names."""
    pairs = []
    for i, x in enumerate(trace):
        monitor.update(x)
        if monitor.drift_detected:
            pairs.append((i, i - monitor.age + 1))
            monitor.restart()
    return pairs


@every_detector
@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e6])
def test_every_rise_is_found_and_its_onset_named(name: str, unit: float) -> None:
    trace = [unit * x for x in noisy([(0.1, 300), (1.0, 300), (9.0, 300)])]
    pairs = found(RiseMonitor(DETECTORS[name]()), trace)
    assert len(pairs) == 2
    for (alarm, onset), change in zip(pairs, (300, 600), strict=True):
        assert change <= alarm < change + 60
        assert abs(onset - change) <= 3


@every_detector
def test_what_falls_or_rests_is_no_change(name: str) -> None:
    for trace in (
        noisy([(2.0, 200), (0.2, 200), (0.02, 400)]),
        [0.5] * 800,
        [2.0 * 0.997**i for i in range(800)],
        falling(0, seed=1, steps=1500),
    ):
        assert found(RiseMonitor(DETECTORS[name]()), trace) == []


@every_detector
def test_goes_on_from_its_state(name: str) -> None:
    trace = noisy([(0.1, 200), (1.0, 200)])
    whole = found(RiseMonitor(DETECTORS[name]()), trace)
    for cut in (20, 120, 201, 203, 300):
        first, second = (RiseMonitor(DETECTORS[name]()) for _ in range(2))
        before = found(first, trace[:cut])
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert second.state_dict() == first.state_dict()
        assert before + [(cut + i, cut + o) for i, o in found(second, trace[cut:])] == whole


@every_detector
def test_a_detector_is_not_changed_by_its_use(name: str) -> None:
    detector = DETECTORS[name]()
    trace = noisy([(0.1, 100), (1.0, 100)])
    assert found(RiseMonitor(detector), trace) == found(RiseMonitor(detector), trace) != []


def test_random_detectors_need_a_seed() -> None:
    with pytest.raises(ValueError, match="give it seed=0"):
        RiseMonitor(river.KSWIN())


@pytest.mark.parametrize("seed", range(5))
def test_cusum_is_the_largest_sum_of_a_run_that_ends_now(seed: int) -> None:
    numbers = random.Random(seed)
    values = [numbers.gauss(0.4, 1.0) for _ in range(120)]
    cusum, endless = CUSUM(threshold=4.0), CUSUM(threshold=float("inf"))
    indices = []
    for i, value in enumerate(values):
        cusum.update(value)
        endless.update(value)
        best, length = largest_suffix(values[: i + 1], 0.5)
        assert endless.sum == pytest.approx(best, abs=1e-9)
        assert endless.age == length
        if cusum.drift_detected:
            indices.append(i)
    assert indices == alarms(values, threshold=4.0, allowance=0.5)
    assert indices


def test_cusum_finds_a_rise_by_one_deviation_in_about_twice_its_threshold() -> None:
    delays = []
    for seed in range(100):
        numbers, cusum = random.Random(seed), CUSUM(threshold=8.0)
        for step in range(1000):
            cusum.update(numbers.gauss(1.0, 1.0))
            if cusum.drift_detected:
                delays.append(step + 1)
                break
    assert sorted(delays)[50] == pytest.approx(8.0 / 0.5, abs=3)


@pytest.mark.parametrize("arguments", [{"threshold": 0.0}, {"allowance": -1.0}, {"threshold": float("nan")}])
def test_arguments_that_cannot_work(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        CUSUM(**arguments)
