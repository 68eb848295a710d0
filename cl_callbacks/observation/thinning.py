"""How many rows of scores are kept, and which one goes first, so that memory is linear in the tasks."""

from __future__ import annotations

from collections.abc import Sequence

MOST_SCORES, MOST_ROWS, LEAST_ROWS = 2**17, 1024, 128
"""Scores kept whole, rows at most, and rows that are kept however long they are."""

MOST_TASKS = 100
"""Tasks of which loggers get curves and columns of their own."""


def rows_kept(width: int) -> int:
    """Number of rows of a width that are kept: 131,072 scores, but 128 to 1,024 rows.

    Example:
        >>> rows_kept(10), rows_kept(300), rows_kept(10_000)
        (1024, 436, 128)
    """
    return min(MOST_ROWS, max(LEAST_ROWS, MOST_SCORES // max(width, 1)))


def most_crowded(positions: Sequence[float]) -> int:
    """Index of the position whose neighbours are nearest to each other, the first of several.

    The first position and the last two are never chosen; there must be four.

    Example:
        >>> most_crowded([0, 10, 11, 12, 20, 30])
        2
    """
    return min(range(1, len(positions) - 2), key=lambda i: positions[i + 1] - positions[i - 1])


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` indices from 0 to ``count - 1``, evenly spaced, with both ends.

    Example:
        >>> evenly(3, most=5), evenly(1000, most=5)
        ([0, 1, 2], [0, 250, 500, 749, 999])
    """
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
