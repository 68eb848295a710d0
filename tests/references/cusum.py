"""The CUSUM statistic from its definition: the largest sum of any run of values that ends now."""

from __future__ import annotations


def largest_suffix(values: list[float], allowance: float) -> tuple[float, int]:
    """Return the largest sum of the last values minus the allowance, at least 0, and their number."""
    best, length = 0.0, 0
    for n in range(1, len(values) + 1):
        total = sum(value - allowance for value in values[-n:])
        if total > best:
            best, length = total, n
    return best, length


def alarms(values: list[float], threshold: float, allowance: float) -> list[int]:
    """Return the indices at which the sum exceeds the threshold, restarting after each alarm."""
    found, start = [], 0
    for i in range(len(values)):
        if largest_suffix(values[start : i + 1], allowance)[0] > threshold:
            found.append(i)
            start = i + 1
    return found
