"""The cumulative sum (CUSUM) test for a rise of the mean."""

from __future__ import annotations

from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import ENDLESS, POSITIVE


class CUSUM:
    r"""Detects when the mean of a stream of standardised values has risen, even slightly.

    .. math:: S \leftarrow \max(0,\ S + z - k), \qquad \text{alarm when } S > h .

    A rise by :math:`\delta > k` standard deviations is found after about :math:`h/(\delta-k)` values. A fall
    never raises an alarm. After an alarm the sum restarts at 0.

    Source: Page 1954, Biometrika 41, 100–115.

    Args:
        threshold: :math:`h`, in standard deviations of a value. A larger one means fewer false alarms and
            later true ones; ``inf`` means none.
        allowance: :math:`k`, half the smallest rise that is worth finding, in standard deviations.

    Attributes:
        drift_detected: whether the last value raised the alarm.
        sum: :math:`S`, the evidence for a rise.
        age: number of values since the sum was last 0, which is where a rise began, if there is one.

    Raises:
        ValueError: a threshold or an allowance that is not positive, at construction.

    Example:
        >>> cusum = CUSUM(threshold=4.0)
        >>> for step, z in enumerate([0.0] * 20 + [2.0] * 5):
        ...     cusum.update(z)
        ...     if cusum.drift_detected: print(step, cusum.age)
        22 3
    """

    @checked(threshold=ENDLESS, allowance=POSITIVE)
    def __init__(self, threshold: float = 12.0, allowance: float = 0.5) -> None:
        self.threshold = threshold
        self.allowance = allowance
        self._reset()

    def _reset(self) -> None:
        self.drift_detected = False
        self.sum, self.age = 0.0, 0

    def update(self, x: float) -> None:
        """Processes the next value, and sets ``drift_detected``."""
        if self.drift_detected:
            self._reset()
        self.sum = max(0.0, self.sum + x - self.allowance)
        self.age = self.age + 1 if self.sum else 0
        self.drift_detected = self.sum > self.threshold
