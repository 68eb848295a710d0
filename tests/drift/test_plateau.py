"""The plateau rule on scripted losses, and against the published one."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cl_callbacks.drift import Plateau
from tests.references.plateau import literal, with_margin


def found(detector: Plateau, trace: list[float]) -> list[int]:
    indices = []
    for i, x in enumerate(trace):
        detector.update(x)
        if detector.drift_detected:
            indices.append(i)
    return indices


def noisy(levels: list[tuple[float, int]], noise: float = 0.02, seed: int = 0) -> list[float]:
    numbers = random.Random(seed)
    return [level + noise * numbers.uniform(-1, 1) for level, steps in levels for _ in range(steps)]


HIGH_LOW = [(2.0, 40), (0.1, 60), (2.0, 40), (0.1, 60)]


@pytest.mark.parametrize("threshold", ["relative", "absolute"])
def test_two_tasks_are_two_plateaus(threshold: Any) -> None:
    indices = found(Plateau(threshold=threshold), noisy(HIGH_LOW))
    assert len(indices) == 2
    assert 40 <= indices[0] < 60
    assert 140 <= indices[1] < 160


@pytest.mark.parametrize("threshold", ["relative", "absolute"])
def test_a_slow_decay_is_one(threshold: Any) -> None:
    assert len(found(Plateau(threshold=threshold), [2.0 * 0.997**i for i in range(3000)])) == 1


@pytest.mark.parametrize("trace", [[0.1] * 2000, noisy([(0.1, 2000)])])
def test_a_flat_loss_is_at_most_one(trace: list[float]) -> None:
    """Where the published rule, without a margin, is set off by noise."""
    assert len(found(Plateau(threshold="absolute"), trace)) == 1
    assert found(Plateau(threshold="relative"), trace) == []
    assert len(found(Plateau(threshold="absolute", margin=0.0), noisy([(0.1, 2000)]))) > 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_equals_the_published_rule(margin: float, seed: int) -> None:
    numbers = random.Random(seed)
    levels = [(numbers.choice([0.05, 0.1, 0.15, 0.5, 2.0]), numbers.randint(3, 30)) for _ in range(60)]
    trace = noisy(levels, noise=0.03, seed=seed)
    expected = (with_margin if margin else literal)(trace)
    assert found(Plateau(threshold="absolute", margin=margin), trace) == expected
    assert len(expected) > 3


def test_relative_thresholds_do_not_depend_on_the_unit() -> None:
    trace = noisy(HIGH_LOW)
    assert found(Plateau(), trace) == found(Plateau(), [1000.0 * x for x in trace])


def test_a_short_rise_after_a_long_rest_counts() -> None:
    trace = noisy([(2.0, 20), (0.1, 5000), (2.0, 20), (0.1, 50)])
    assert len(found(Plateau(), trace)) == 2


def test_a_rise_that_comes_late_counts_too() -> None:
    """After more values than are kept, and before the first plateau."""
    trace = noisy([(1.0, 1500), (20.0, 100), (6.0, 60)])
    assert len(found(Plateau(), trace)) == 1
    assert found(Plateau(), noisy([(1.0, 1500), (6.0, 60)])) == []


def test_each_peak_has_a_scale_of_its_own() -> None:
    """A second task of a much lower loss is not at rest while it is being learned."""
    trace = noisy([(20.0, 40), (0.1, 60), (2.0, 40)])
    assert len(found(Plateau(), trace)) == 1
    assert len(found(Plateau(), noisy([(20.0, 40), (0.1, 60), (2.0, 40), (0.1, 40)]))) == 2


def test_the_scale_outlives_the_values_it_came_from() -> None:
    detector = Plateau()
    assert found(detector, noisy([(20.0, 100), (11.0, 1100)])) == []
    restored = Plateau()
    restored.load_state_dict(detector.state_dict())
    assert restored.state_dict() == detector.state_dict()
    assert len(found(detector, noisy([(9.0, 10)]))) == len(found(restored, noisy([(9.0, 10)]))) == 1


def test_a_loss_below_0_needs_absolute_thresholds() -> None:
    trace = noisy([(-1.0, 30), (-3.0, 30), (-1.0, 30), (-3.0, 30)])
    with pytest.warns(UserWarning, match="use threshold='absolute'"):
        assert found(Plateau(), trace) == []
    assert len(found(Plateau(threshold="absolute", level=-2.5), trace)) == 2


def test_goes_on_from_its_state() -> None:
    trace = noisy([*HIGH_LOW, (1.0, 1200), (0.1, 20)])
    whole = found(Plateau(), trace)
    for cut in (3, 45, 120, 1390):
        first, second = Plateau(), Plateau()
        before = found(first, trace[:cut])
        second.load_state_dict(first.state_dict())
        assert before + [cut + i for i in found(second, trace[cut:])] == whole


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"window": 1}, "at least 2"),
        ({"threshold": "both"}, "threshold must be 'relative' or 'absolute'"),
        ({"margin": -1.0}, "at least 0"),
    ],
)
def test_arguments_that_cannot_work(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Plateau(**arguments)
