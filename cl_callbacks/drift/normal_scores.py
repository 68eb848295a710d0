"""Normal scores: standardises values by their rank among recent ones."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from statistics import NormalDist
from typing import Any

from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import NON_NEGATIVE, Bounds

_NORMAL = NormalDist()


class NormalScores:
    r"""Converts values of any distribution to standard deviations, by their rank among recent values.

    .. math:: z = \Phi^{-1}\!\left(\frac{r + \frac12}{n+1}\right), \qquad
              r = \#\{x_i < x\} + \tfrac12\,\#\{x_i = x\}

    over the last :math:`n \le` ``window`` values :math:`x_i` before :math:`x`. As long as nothing changes,
    :math:`z` is standard normal, also for losses that are skewed, or small except for an occasional hard
    batch; deviations from the median would raise an alarm at every such batch. Values that differ by at most
    ``resolution`` count as equal.

    Source: van der Waerden 1952; for control charts, Conover, Tercero-Gómez & Cordero-Franco 2017, "The
    sequential normal scores transformation" (Sequential Analysis 36).

    Args:
        window: number of recent values to compare with.
        warm_up: number of values before the first :math:`z`.
        resolution: largest difference that counts as none.

    Raises:
        ValueError: a window of fewer than 10 values, or a warm-up of fewer than 2.

    Example:
        >>> score = NormalScores(warm_up=4)
        >>> for x in (1.0, 2.0, 3.0, 4.0): score.add(x)
        >>> score(2.5), round(score(100.0), 2)
        (0.0, 1.28)
    """

    @checked(window=Bounds(least=10), warm_up=Bounds(least=2), resolution=NON_NEGATIVE)
    def __init__(self, window: int = 200, warm_up: int = 50, resolution: float = 0.0) -> None:
        self.window = window
        self.warm_up = warm_up
        self.resolution = resolution
        self.restart()

    def restart(self) -> None:
        """Clears all values."""
        self.recent: deque[float] = deque(maxlen=self.window)
        self.held: list[float] = []
        self.seen = 0

    def __call__(self, x: float) -> float | None:
        """Returns the score :math:`z` of a value, without adding it; ``None`` while warming up."""
        return None if self.seen < self.warm_up else self.rank(x)

    def rank(self, x: float) -> float:
        """Returns the score :math:`z` of a value among those so far, however few."""
        values = sorted(self.recent)
        below = bisect_left(values, x - self.resolution)
        equal = bisect_right(values, x + self.resolution) - below
        return _NORMAL.inv_cdf((below + equal / 2 + 0.5) / (len(values) + 1))

    def reach(self, x: float) -> float:
        """Returns how many times as far above the median as the highest recent value a value is."""
        values = sorted(self.recent)
        median = values[len(values) // 2]
        highest = max(values[-1] - median, self.resolution)
        return (x - median) / highest if highest else math.inf if x > median else 0.0

    def add(self, x: float, hold: bool = False) -> None:
        """Adds a value to the recent ones; with ``hold``, only along with the next one that is not held."""
        self.seen += 1
        self.held.append(x)
        if not hold:
            self.recent.extend(self.held)
            self.held.clear()

    def state_dict(self) -> dict[str, Any]:
        """Numbers only."""
        return {"recent": list(self.recent), "held": list(self.held), "seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state that :meth:`state_dict` returned."""
        self.restart()
        self.recent.extend(state_dict["recent"])
        self.held, self.seen = list(state_dict["held"]), state_dict["seen"]
