"""Averages of weights over tasks, one weight after the other."""

from __future__ import annotations

from collections.abc import Sequence


def mean_over_tasks(weights: Sequence[Sequence[float]], shares: Sequence[Sequence[float]]) -> list[float]:
    """Mean of each weight over the tasks, each with its share; the latest weight where no task has any.

    Args:
        weights: of each task, as many as there are weights.
        shares: likewise, at least 0.
    """
    found = []
    for values, counts in zip(zip(*weights, strict=True), zip(*shares, strict=True), strict=True):
        total = sum(counts)
        mean = sum(value * count for value, count in zip(values, counts, strict=True))
        found.append(mean / total if total > 0 else values[-1])
    return found


def towards(weight: float, old: float, tasks: float, share: float) -> float:
    """A weight after it was averaged with an old one, if a task before has trained it."""
    return (1 - share) * weight + share * old if tasks > 0 else weight
