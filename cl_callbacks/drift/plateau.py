"""Detects when a loss has reached a plateau."""

from __future__ import annotations

import statistics
import warnings
from typing import Any, Literal

from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import NON_NEGATIVE, POSITIVE, Bounds

Threshold = Literal["relative", "absolute"]

_DEFAULTS = {"relative": (0.5, 0.1), "absolute": (0.2, 0.1)}
_HISTORY = 1000  # values per 95th percentile; of older ones only the highest percentile is kept


class Plateau:
    r"""Detects a plateau of the loss, once, and the next one only after the loss has risen in between.

    With mean :math:`\mu` and variance :math:`v` of the last ``window`` values, and those of the last
    plateau, :math:`\mu_0` and :math:`v_0`:

    * a **peak** is :math:`\mu > \mu_0 + \max(\sqrt{v_0},\ \text{margin}\cdot\mu_0)`;
    * a **plateau** is a low mean and variance after a peak, by ``threshold``. ``"absolute"``:
      :math:`\mu < \text{level}` and :math:`v < \text{spread}`, in units of the loss. ``"relative"``:
      :math:`\mu < \text{level}\cdot q` and :math:`\sqrt v < \text{spread}\cdot q`, where :math:`q` is the
      95th percentile of the loss since the peak began (the highest of those of each thousand values).

    Relative thresholds are for losses above 0; at a negative value ``update`` warns once.

    The published rule is ``Plateau(threshold="absolute", margin=0.0)``. Its thresholds suit one particular
    loss, and without a margin a flat noisy loss triggers it again and again.

    Source: Aljundi et al. 2019 (arXiv 1812.03596) and its released code.

    Args:
        window: number of recent values.
        threshold: whether level and spread are relative to the loss at the peak, or absolute.
        level: see above; by default 0.5 (relative) or 0.2 (absolute).
        spread: see above; by default 0.1.
        margin: see above, at least 0.

    Attributes:
        drift_detected: whether the last value completed a plateau.
        peak: whether the loss has been at a peak since the last plateau; only then can a plateau be found.
        nearness: how near the loss is to a plateau, 0 to 1: the smaller ratio of a threshold to its value.

    Example:
        >>> plateau = Plateau()
        >>> for loss in [2.0] * 10 + [0.1] * 10 + [2.0] * 10 + [0.1] * 10:
        ...     plateau.update(loss)
        ...     if plateau.drift_detected: print(plateau.mean)
        0.1
        0.1
    """

    @checked(
        window=Bounds(least=2),  # of which there is a variance
        spread=POSITIVE,
        margin=NON_NEGATIVE,
    )
    def __init__(
        self,
        *,
        window: int = 5,
        threshold: Threshold = "relative",
        level: float | None = None,
        spread: float | None = None,
        margin: float = 0.5,
    ) -> None:
        self.window, self.threshold, self.margin = window, threshold, margin
        default = _DEFAULTS[threshold]
        self.level = default[0] if level is None else level
        self.spread = default[1] if spread is None else spread
        self._reset()

    def _reset(self) -> None:
        self.drift_detected = False
        self.recent: list[float] = []
        self.since_peak: list[float] = []
        self.nearness = 0.0
        self.high = 0.0  # highest 95th percentile of the values since the peak that were dropped
        self.peak = True
        self._warned = False
        self.last = (0.0, 0.0)  # mean and variance at the last plateau

    @property
    def mean(self) -> float:
        """Mean of the window."""
        return statistics.fmean(self.recent)

    def update(self, x: float) -> None:
        """Processes the next value, and sets ``drift_detected``."""
        self.drift_detected = False
        if x < 0 and self.threshold == "relative" and not self._warned:
            self._warned = True
            warnings.warn(
                "Plateau(threshold='relative') compares a loss with how high it was, which means nothing for "
                "a loss below 0: use threshold='absolute' with a level and spread of your loss.",
                stacklevel=2,
            )
        self.recent = [*self.recent, x][-self.window :]
        if len(self.recent) < self.window:
            self.since_peak.append(x)
            return
        mean = self.mean
        variance = statistics.fmean((value - mean) ** 2 for value in self.recent)
        if not self.peak and mean > self.last[0] + max(self.last[1] ** 0.5, self.margin * self.last[0]):
            self.peak, self.since_peak, self.high = True, list(self.recent), 0.0
        elif self.peak and self.threshold == "relative":
            self.since_peak.append(x)
        if self.peak and self._is_low(mean, variance):
            self.drift_detected, self.peak, self.last = True, False, (mean, variance)

    def _is_low(self, mean: float, variance: float) -> bool:
        if self.threshold == "absolute":
            return self._is_below((mean, self.level), (variance, self.spread))
        high = max(self.high, sorted(self.since_peak)[int(0.95 * (len(self.since_peak) - 1))])
        if len(self.since_peak) >= _HISTORY:
            self.high, self.since_peak = high, list(self.recent)
        return self._is_below((mean, self.level * high), (variance**0.5, self.spread * high))

    def _is_below(self, *compared: tuple[float, float]) -> bool:
        """Whether each value is below its limit; also sets ``nearness``."""
        self.nearness = max(0.0, min(limit / max(value, limit, 1e-30) for value, limit in compared))
        return all(value < limit for value, limit in compared)

    def state_dict(self) -> dict[str, Any]:
        """Numbers only."""
        return {
            "recent": list(self.recent),
            "since_peak": list(self.since_peak),
            "high": self.high,
            "peak": self.peak,
            "last": list(self.last),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state that :meth:`state_dict` returned."""
        self._reset()
        self.recent, self.since_peak = list(state_dict["recent"]), list(state_dict["since_peak"])
        self.high = state_dict["high"]
        self.peak, self.last = state_dict["peak"], (state_dict["last"][0], state_dict["last"][1])
