"""Fits labels into a figure: shortens them, leaves some out, or moves them apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def cut(name: str, size: int, head: float = 0.5) -> str:
    """Shortens a long name by leaving out its middle.

    Args:
        name: the name to shorten.
        size: maximum number of characters.
        head: share of the remaining characters before the gap.

    Example:
        >>> cut("encoder.layer.3.attention.weight", size=18)
        'encoder…on.weight'
    """
    if len(name) <= size:
        return name
    first = round((size - 1) * head)
    return f"{name[:first].rstrip('._ ')}…{name[len(name) - (size - 1 - first) :].lstrip('._ ')}"


def row_names(
    rows: Iterable[int], names: Sequence[str], order: Sequence[int | None] | None = None, size: int = 12
) -> list[str]:
    """Names of rows of a task matrix, the same wherever it is shown: the task that was learned last.

    Args:
        rows: the number of tasks learned at each.
        names: name of each column.
        order: column of the task learned first, second and so on, if they are not 0, 1, 2 …
        size: maximum number of characters of a task's name.

    Example:
        >>> row_names([0, 1, 2], ["digits", "1"])
        ['—', '0 digits', '1']
    """
    columns = range(len(names)) if order is None else order

    def name(row: int) -> str:
        column = columns[row - 1] if row <= len(columns) else None
        number = str(row - 1 if column is None else column)
        named = column is not None and names[column] != number
        return f"{number} {cut(names[column], size)}" if named else number  # type: ignore[index]

    return [name(row) if row else "—" for row in rows]


def shortened(names: Sequence[str], size: int) -> list[str]:
    """Shortens names to the least length from ``size`` up at which different names stay different.

    They are made :func:`plain`, and cut in any case at four times the ``size``.

    Example:
        >>> shortened(["encoder.block.3.weight", "encoder.block.4.weight"], size=14)
        ['enco…3.weight', 'enco…4.weight']
    """
    names = list(map(plain, names))
    different = len(set(names))
    for length in range(size, min(4 * size, max(map(len, names), default=0))):
        for head in (0.5, 0.3, 0.7):
            short = [cut(name, length, head) for name in names]
            if len(set(short)) == different:
                return short
    return [cut(name, 4 * size) for name in names]


def plain(text: str) -> str:
    r"""The text as Matplotlib shall draw it: no formula, and nothing that is no character.

    Example:
        >>> plain("$a$"), plain("nul\0")
        ('\\$a\\$', 'nul_')
    """
    return "".join(c if c.isprintable() else "_" for c in text).replace("$", r"\$")


def every(count: int, room: int) -> int:
    """Least interval among 1, 2, 5, 10, 20, … at which at most ``room`` of ``count`` labels remain.

    Example:
        >>> every(count=50, room=12), every(count=12, room=12)
        (5, 1)
    """
    interval = 1
    while -(-count // interval) > room:
        text = str(interval)
        interval = int({"1": "2", "2": "5", "5": "10"}[text[0]] + text[1:])
    return interval


def apart(positions: Sequence[float], gap: float) -> list[int]:
    """Indices of the rising positions to label, at a round interval and at least ``gap`` apart.

    Example:
        >>> apart([0.0, 0.1, 0.5, 0.55, 1.0], gap=0.2)
        [0, 2, 4]
    """
    if len(positions) < 2:
        return list(range(len(positions)))
    interval = every(len(positions) - 1, room=max(1, int((positions[-1] - positions[0]) / gap)))
    chosen: list[int] = []
    for index in range(0, len(positions), interval):
        if not chosen or positions[index] - positions[chosen[-1]] >= gap:
            chosen.append(index)
    return chosen


def spread_apart(positions: Sequence[float], gap: float) -> list[float]:
    """Moves positions between 0 and 1 at least ``gap`` apart, in the same order.

    Example:
        >>> spread_apart([0.5, 0.9, 0.9], gap=0.25)
        [0.5, 0.75, 1.0]
    """
    order = np.argsort(positions, kind="stable")
    placed = [float(positions[i]) for i in order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    highest = 1.0
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], highest)
        highest = placed[i] - gap
    result = [0.0] * len(placed)
    for i, position in zip(order, placed, strict=True):
        result[i] = position
    return result
