"""Losses as they come: falling, at rest, after a change."""

from __future__ import annotations

import math
import random


def noisy(levels: list[tuple[float, int]], spread: float = 0.3, seed: int = 0) -> list[float]:
    """Levels for so many steps each, with noise of this standard deviation on their logarithm."""
    numbers = random.Random(seed)
    return [level * math.exp(spread * numbers.gauss(0, 1)) for level, steps in levels for _ in range(steps)]


def falling(kind: int, seed: int, steps: int = 5000) -> list[float]:
    """A loss that falls from 2.35 to 0.05, fast or slowly, with noise of one of four kinds."""
    numbers = random.Random(seed)

    def value(step: int) -> float:
        level = 0.05 + 2.3 * math.exp(-step / (300 if seed % 2 else 1500))
        noise = numbers.gauss(0, 1)
        return (
            level * math.exp(0.3 * noise),
            max(level + 0.02 * noise, 1e-4),
            level * numbers.expovariate(1.0),
            level * math.exp(0.8 * noise),
        )[kind]

    return [value(step) for step in range(steps)]
