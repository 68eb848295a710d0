"""Detects rises in a stream of raw values, and estimates when they began."""

from __future__ import annotations

import copy
import math
from collections import deque
from typing import Any, Protocol

from cl_callbacks.drift.cusum import CUSUM
from cl_callbacks.drift.dependence import Dependence
from cl_callbacks.drift.normal_scores import NormalScores
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import Bounds

_EVIDENCE = 4.0  # least sum of deviations that counts as a rise; chance exceeds it at one value in fifty
_MOST = 2.4  # largest evidence of one value, times the dependence: five are needed at a threshold of 12
_REMEMBERED = 10_000
_RESOLUTION = 0.02  # in units of the logarithm: changes of a loss by less than 2 % count as none


class Detector(Protocol):
    """Protocol of a change detector, here and in the river library."""

    @property
    def drift_detected(self) -> bool:
        """Whether the last value raised the alarm."""

    def update(self, x: Any) -> Any:
        """Processes the next value, a number."""


class RiseMonitor:
    r"""Detects when a raw value, such as a loss, has risen for good, and estimates since when.

    Each value becomes a number of standard deviations by its rank among the recent ones (see
    :class:`~cl_callbacks.drift.normal_scores.NormalScores`), and goes to the detector. When that raises an
    alarm, the onset is where the cumulative sum of :math:`z-\frac12` was last 0. An alarm without a rise is
    ignored: two-sided detectors also find the falling loss of a network that is learning. While the sum is
    above 0, new values do not enter the ranking, but for at most ``window`` values: if the detector has not
    raised an alarm by then, the risen values become the new normal.

    Values that depend on those before them say less, by a factor :math:`\tau` that is estimated from the
    scores (see :class:`~cl_callbacks.drift.dependence.Dependence`) and remembered over restarts: an alarm
    counts once the sum is :math:`\tau` times what it was when the detector raised it. Where
    :math:`\tau > 1`, scores of values above all recent ones are multiplied by how many times as far from
    the median they are as the highest of those, up to :math:`2.4\,\tau`: ranks alone would take long to tell
    a large rise from a usual one. Independent values have :math:`\tau=1`, for which nothing changes.

    Args:
        detector: change detector for normal scores; any object with ``update(x)`` and ``drift_detected``,
            such as those of ``river.drift``. It is copied, now and at each restart.
        warm_up: number of values after each restart that only calibrate the ranking.
        window: number of recent values in the ranking.
        logarithm: whether values are compared by their logarithms, whose differences below 0.02 count as
            none. The first negative value turns it off.
        independent: whether to take :math:`\tau=1` without measuring it. Tasks that are learned in less than
            some 150 values each look like a period, and are missed unless it is set.

    Attributes:
        drift_detected: whether the last value raised an alarm.
        age: number of values since the rise began, the last one included; 0 if nothing has risen.
        score: evidence for a rise, the cumulative sum divided by :math:`\tau`.
        dependence: :math:`\tau`, at least 1.

    Raises:
        TypeError: a detector without ``update`` and ``drift_detected``.
        ValueError: invalid numbers, or a detector that draws random numbers without a seed.

    Example:
        >>> monitor = RiseMonitor()
        >>> for step, loss in enumerate([0.1, 0.12, 0.08, 0.11] * 20 + [1.0] * 10):
        ...     monitor.update(loss)
        ...     if monitor.drift_detected: print(step, monitor.age); break
        85 6
    """

    @checked(warm_up=Bounds(least=2), window=Bounds(least=10))
    def __init__(
        self,
        detector: Detector | None = None,
        *,
        warm_up: int = 50,
        window: int = 200,
        logarithm: bool = True,
        independent: bool = False,
    ) -> None:
        detector = CUSUM() if detector is None else detector
        protocol = callable(getattr(detector, "update", None)) and hasattr(detector, "drift_detected")
        if isinstance(detector, type) or not protocol:
            raise TypeError(
                f"a detector is an object with a method update(x) and, after it, drift_detected, such as "
                f"CUSUM() or river.drift.ADWIN(); got {detector!r}"
            )
        if getattr(detector, "seed", 0) is None:
            raise ValueError(
                f"{type(detector).__name__} draws random numbers, and without a seed of its own a resumed "
                f"run, or another process, would decide otherwise: give it seed=0"
            )
        self._scores = NormalScores(window, warm_up)
        self._dependence, self.independent = Dependence(), independent
        self._pristine, self.logarithm = detector, logarithm
        self.restart()

    def restart(self) -> None:
        """Restarts with a fresh detector and an empty ranking; the dependence is remembered."""
        self.detector = copy.deepcopy(self._pristine)
        self._fed: deque[float] = deque(maxlen=_REMEMBERED)
        self._scores.restart()
        self._scores.resolution = _RESOLUTION if self.logarithm else 0.0
        self._dependence.forget_held()
        self._rest()
        self.drift_detected = False

    def _rest(self) -> None:
        """Sets the evidence for a rise to 0."""
        self._rise = CUSUM(threshold=math.inf)
        self._excess = 0.0  # evidence that the ranks do not show
        self._alarm = math.inf  # sum at which the detector raised its alarm about this rise

    @property
    def age(self) -> int:
        """Number of values since the rise began."""
        return self._rise.age

    @property
    def score(self) -> float:
        """Evidence for a rise, as of so many independent values."""
        return (self._rise.sum + self._excess) / self.dependence

    @property
    def dependence(self) -> float:
        """Number of values that say as much as one independent one."""
        return self._dependence.factor

    def update(self, x: float) -> None:
        """Processes the next value, and sets ``drift_detected``."""
        self.drift_detected = False
        x = self._scaled(x)
        z = self._scores(x)
        if z is not None:
            self._fed.append(z)
            self.detector.update(z)
            self._weigh(x, z)
        hold = self.age > 0
        if not self.independent:
            self._dependence.add(self._scores.rank(x) if z is None else z, hold)
        self._scores.add(x, hold)

    def _weigh(self, x: float, z: float) -> None:
        """Adds the evidence of a value, and decides."""
        self._rise.update(z)
        if self.age == 0:
            self._rest()
            return
        if self.dependence > 1:
            most = max(z, _MOST * self.dependence)
            self._excess += min(most, z * max(1.0, self._scores.reach(x))) - z
        if self.detector.drift_detected and self._rise.sum > _EVIDENCE:
            self._alarm = min(self._alarm, self._rise.sum)
        self.drift_detected = self.score >= self._alarm
        if self.age > self._scores.window and not self.drift_detected:
            self._rest()

    def _scaled(self, x: float) -> float:
        if self.logarithm and x < 0:
            self.logarithm = False
            self.restart()
        return math.log(max(x, 1e-30)) if self.logarithm else x

    def state_dict(self) -> dict[str, Any]:
        """Numbers only: a detector is rebuilt from the last 10,000 scores that it was given."""
        return {
            "usual": self._scores.state_dict(),
            "fed": list(self._fed),
            "rise": [self._rise.sum, self._rise.age, self._excess, self._alarm],
            "dependence": self._dependence.state_dict(),
            "logarithm": self.logarithm,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state that :meth:`state_dict` returned."""
        self.logarithm = state_dict["logarithm"]
        self.restart()
        self._scores.load_state_dict(state_dict["usual"])
        for z in state_dict["fed"]:
            self._fed.append(z)
            self.detector.update(z)
        self._rise.sum, self._rise.age, self._excess, self._alarm = state_dict["rise"]
        self._dependence.load_state_dict(state_dict["dependence"])
