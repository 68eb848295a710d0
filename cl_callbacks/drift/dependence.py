"""How much the values of a stream depend on those before them."""

from __future__ import annotations

import math
from typing import Any

_SCALES = (
    4,
    8,
    16,
    32,
)  # lengths of the compared sums; dependence over more than some 60 values counts as drift
_MEMORY = 500  # values that the means are taken over, about
_PRIOR = 2  # pairs of sums that count as seen, and independent, before the first
_DOUBT = 2.0  # standard deviations above 1 from which a mean counts
_MARGIN = 1.2  # the longest sums are still shorter than what slow dependence needs


class Dependence:
    r"""Estimates how many successive values of a stream say as little as a single independent one would.

    The values are standardised. If they are independent, the sum of :math:`m` of them varies by
    :math:`\sqrt m`, and if neighbours are alike, by more:

    .. math:: R_m = \operatorname*{mean}_t\ \frac{(s_t-s_{t-m})^2}{2m}, \qquad
              s_t=\sum_{i=t-m+1}^{t} z_i, \qquad
              \tau = \max\bigl(1,\ 1.2\,\max_m R_m\bigr), \qquad m\in\{4,8,16,32\} .

    :math:`R_m` is 1 for independent values, and about :math:`(1+\rho)/(1-\rho)` for those that correlate by
    :math:`\rho` with the one before, if :math:`m` is large enough. Sums are compared with their
    neighbours, so that a level that moves slowly, as while a network learns, counts little. Means are over
    the last 500 values or so. A cumulative sum of dependent values grows as one of :math:`1/\tau` as many
    independent ones would, so that with a threshold :math:`\tau` times as high it raises false alarms about
    as rarely.

    With :math:`n` pairs of sums seen, :math:`R_m` is drawn towards 1 by two more, and counts only
    if it is above :math:`1+2\sqrt{2/(n+2)}`, since an estimate from few values is wide.

    Source: Allan 1966, "Statistics of atomic frequency standards" (Proceedings of the IEEE 54), for
    :math:`R_m`, which is :math:`m` times his variance; Johnson & Bagshaw 1974, "The effect of serial
    correlation on the performance of CUSUM tests" (Technometrics 16), for the threshold.

    Attributes:
        factor: :math:`\tau`, at least 1.

    Example:
        >>> dependence = Dependence()
        >>> for i in range(300): dependence.add((i // 20) % 2 - 0.5)
        >>> dependence.factor > 2
        True
    """

    def __init__(self) -> None:
        self._recent: list[float] = []
        self._held: list[float] = []
        self._means = dict.fromkeys(_SCALES, 0.0)
        self._counts = dict.fromkeys(_SCALES, 0)
        self.factor = 1.0

    def add(self, z: float, hold: bool = False) -> None:
        """Adds a value; with ``hold``, only along with the next one that is not held."""
        self._held.append(z)
        if hold:
            return
        for value in self._held:
            self._add(value)
        self._held.clear()
        self.factor = max(1.0, *(self._counted(m) for m in _SCALES))

    def forget_held(self) -> None:
        """Drops the values that are held: they were a change."""
        self._held.clear()

    def _add(self, z: float) -> None:
        self._recent = [*self._recent, z][-2 * _SCALES[-1] :]
        for m in _SCALES:
            if len(self._recent) >= 2 * m:
                apart = sum(self._recent[-m:]) - sum(self._recent[-2 * m : -m])
                self._counts[m] = min(self._counts[m] + 1, _MEMORY)
                self._means[m] += (apart * apart / (2 * m) - self._means[m]) / self._counts[m]

    def _counted(self, m: int) -> float:
        """What the sums of m values say of the factor: 1 unless they differ clearly by more."""
        pairs = self._counts[m] / m
        mean = (pairs * self._means[m] + _PRIOR) / (pairs + _PRIOR)
        clear = mean > 1 + _DOUBT * math.sqrt(2 / (pairs + _PRIOR))
        return _MARGIN * mean if clear else 1.0

    def state_dict(self) -> dict[str, Any]:
        """Numbers only."""
        return {
            "recent": list(self._recent),
            "held": list(self._held),
            "means": list(self._means.values()),
            "counts": list(self._counts.values()),
            "factor": self.factor,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state that :meth:`state_dict` returned."""
        self._recent, self._held = list(state_dict["recent"]), list(state_dict["held"])
        self._means = dict(zip(_SCALES, state_dict["means"], strict=True))
        self._counts = dict(zip(_SCALES, state_dict["counts"], strict=True))
        self.factor = state_dict["factor"]
