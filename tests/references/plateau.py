"""Slow detection of plateaus in a sequence of losses, at which task-free MAS updates the importance."""

from __future__ import annotations

import math


def literal(
    trace: list[float], window: int = 5, mean_below: float = 0.2, variance_below: float = 0.1
) -> list[int]:
    """Find the updates of Aljundi et al. (2019): the first plateau, then one after each new peak.

    Update if mu < mean_below, v < variance_below and peak; peak <- mu > mu_last + sqrt(v_last).
    """
    updates = []
    peak = True
    # Undefined until the first update, and not needed before as there is a peak.
    mu_last = v_last = math.nan
    for index in range(len(trace)):
        if index + 1 < window:
            continue
        values = trace[index + 1 - window : index + 1]
        mu = sum(values) / window
        v = sum((x - mu) ** 2 for x in values) / window
        if not peak and mu > mu_last + math.sqrt(v_last):
            peak = True
        if mu < mean_below and v < variance_below and peak:
            updates.append(index)
            mu_last, v_last = mu, v
            peak = False
    return updates


def with_margin(
    trace: list[float], window: int = 5, mean_below: float = 0.2, variance_below: float = 0.1
) -> list[int]:
    """Find the same updates, with a margin so that noise on a very flat plateau is no peak.

    Update if mu < mean_below, v < variance_below and peak;
    peak <- mu > mu_last + max(sqrt(v_last), 1/2 mu_last).
    """
    updates = []
    peak = True
    # Undefined until the first update, and not needed before as there is a peak.
    mu_last = v_last = math.nan
    for index in range(len(trace)):
        if index + 1 < window:
            continue
        values = trace[index + 1 - window : index + 1]
        mu = sum(values) / window
        v = sum((x - mu) ** 2 for x in values) / window
        if not peak and mu > mu_last + max(math.sqrt(v_last), 0.5 * mu_last):
            peak = True
        if mu < mean_below and v < variance_below and peak:
            updates.append(index)
            mu_last, v_last = mu, v
            peak = False
    return updates
