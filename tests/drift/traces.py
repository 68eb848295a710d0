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


def autoregressive(rho: float, steps: int, seed: int, spread: float = 0.3) -> list[float]:
    """Losses whose logarithm correlates by ``rho`` with the one before."""
    numbers = random.Random(seed)
    x, found = numbers.gauss(0, 1), []
    for _ in range(steps):
        found.append(math.exp(spread * x))
        x = rho * x + math.sqrt(1 - rho * rho) * numbers.gauss(0, 1)
    return found


def sine(period: int, steps: int, seed: int) -> list[float]:
    """Losses that go up and down by 30 %, with noise of 20 %."""
    numbers = random.Random(seed)
    phase = numbers.uniform(0, 2 * math.pi)
    return [
        math.exp(0.3 * math.sin(2 * math.pi * i / period + phase) + numbers.gauss(0, 0.2))
        for i in range(steps)
    ]


def by_class(period: int, steps: int, seed: int) -> list[float]:
    """Losses of data that are sorted by class, again and again."""
    numbers = random.Random(seed)
    levels = (0.2, 0.3, 0.25, 0.9, 0.4, 0.2, 0.6, 1.0, 0.3, 0.5)
    return [levels[10 * (i % period) // period] * math.exp(numbers.gauss(0, 0.2)) for i in range(steps)]
