"""How far a value lies above what was usual."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

_RESOLUTION = 0.02  # of a logarithm: changes of a loss by 2 % are never larger than one deviation
_SIGMA = 1.4826  # of a normal distribution, in median absolute deviations
_UPPER_DECILE = 1.2816  # of a normal distribution, in standard deviations


class Standardiser:
    r"""Values in standard deviations from the median of the recent ones.

    .. math:: z = \frac{x - \mathrm{median}}{\max(1.4826\,\mathrm{MAD},\ (q_{0.9}-\mathrm{median})/1.2816)},
              \qquad |z| \le \text{limit}

    over the last ``window`` values before :math:`x`. Both spreads are the standard deviation if the values
    are normal; the upper decile keeps a loss that is mostly small, but for a hard batch now and then, from
    looking like one change after the other.

    Args:
        window: how many recent values are usual.
        warm_up: how many values have to be seen before the first :math:`z`.
        limit: largest size of a :math:`z`, so that no single value is an alarm.

    Example:
        >>> standardise = Standardiser(warm_up=4)
        >>> [standardise(x) for x in (-1.0, 0.0, 0.0, 1.0)]
        [None, None, None, None]
        >>> round(standardise(2 / 1.2816), 3)
        2.0
    """

    def __init__(self, window: int = 100, warm_up: int = 30, limit: float = 5.0) -> None:
        self.window, self.warm_up, self.limit = window, warm_up, limit
        self.restart()

    def restart(self) -> None:
        """Forgets what was usual."""
        self.recent: deque[float] = deque(maxlen=self.window)
        self.held: list[float] = []
        self.seen = 0

    def __call__(self, x: float, hold: bool = False) -> float | None:
        """The value in standard deviations; ``None`` while warming up.

        Args:
            x: the next value.
            hold: keep what is usual as it is. Values that are held join it once there is one that is not.
        """
        z = None if self.seen < self.warm_up else self._deviation(x)
        self.seen += 1
        self.held.append(x)
        if not hold:
            self.recent.extend(self.held)
            self.held.clear()
        return z

    def _deviation(self, x: float) -> float:
        values = sorted(self.recent)
        median = statistics.median(values)
        spread = _SIGMA * statistics.median(abs(value - median) for value in values)
        upper = (values[round(0.9 * (len(values) - 1))] - median) / _UPPER_DECILE
        z = (x - median) / max(spread, upper, _RESOLUTION)
        return math.copysign(min(abs(z), self.limit), z)

    def state_dict(self) -> dict[str, Any]:
        """Numbers only."""
        return {"recent": list(self.recent), "held": list(self.held), "seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the state was taken."""
        self.restart()
        self.recent.extend(state_dict["recent"])
        self.held, self.seen = list(state_dict["held"]), state_dict["seen"]
