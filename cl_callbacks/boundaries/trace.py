"""A curve of bounded length for a plot."""

from __future__ import annotations

from typing import Any


class Trace:
    """Mean value and highest score of groups of steps, whose length doubles when the curve is full.

    Args:
        size: maximum number of points, even.

    Example:
        >>> trace = Trace(size=2)
        >>> for step in range(4):
        ...     trace.add(step, value=float(step), score=0.0)
        >>> trace.points
        [(0, 0.5, 0.0), (2, 2.5, 0.0)]
    """

    def __init__(self, size: int = 2048) -> None:
        self.size = size
        self.points: list[tuple[int, float, float]] = []
        """First step, mean value and highest score of each complete point."""
        self._width = 1  # number of values per point
        self._open: list[tuple[int, float, float]] = []

    def add(self, step: int, value: float, score: float) -> None:
        """Adds the value and score of a step."""
        self._open.append((step, value, score))
        if len(self._open) < self._width:
            return
        if len(self.points) == self.size:
            self.points = [_joined(self.points[i : i + 2]) for i in range(0, self.size, 2)]
            self._width *= 2
        if len(self._open) == self._width:
            self.points.append(_joined(self._open))
            self._open = []

    def state_dict(self) -> dict[str, Any]:
        """Numbers only."""
        return {"points": list(self.points), "open": list(self._open), "width": self._width}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that :meth:`state_dict` returned."""
        self.points, self._open = [*map(tuple, state["points"])], [*map(tuple, state["open"])]
        self._width = state["width"]


def _joined(points: list[tuple[int, float, float]]) -> tuple[int, float, float]:
    steps, values, scores = zip(*points, strict=True)
    return steps[0], sum(values) / len(values), max(scores)
