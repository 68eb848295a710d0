"""How much a series depends on itself, from its definition: over the whole series at once."""

from __future__ import annotations

import math
from statistics import fmean


def dependence(values: list[float]) -> float:
    factors = [1.0]
    for m in (4, 8, 16, 32):
        starts = range(len(values) - 2 * m + 1)
        squares = [(sum(values[i + m : i + 2 * m]) - sum(values[i : i + m])) ** 2 for i in starts]
        pairs = len(squares) / m
        mean = (pairs * fmean(squares or [0.0]) / (2 * m) + 2) / (pairs + 2)
        if mean > 1 + 2 * math.sqrt(2 / (pairs + 2)):
            factors.append(1.2 * mean)
    return max(factors)
