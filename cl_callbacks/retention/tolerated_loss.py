"""How much old tasks have lost since they were learned, and how much they may lose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

ROUNDING = 1e-6
"""Share of a score by which it may differ from itself, since it is computed in float32."""


class ToleratedLoss(NamedTuple):
    """Compares scores of tasks with those that they had when they were learned.

    Attributes:
        learned: the score of each old task when it was learned, by the number of its loader.
        tolerance: the largest loss that is allowed, in the units of the score.
        higher_is_better: whether a higher score is the better one.

    Example:
        >>> tolerated = ToleratedLoss({0: 0.75, 1: 0.5}, 0.125, higher_is_better=True)
        >>> tolerated.worst([0.5, 0.625, 0.25])
        (0, 0.25)
        >>> tolerated.excess([0.5, 0.625, 0.25])
        0.125
    """

    learned: Mapping[int, float]
    tolerance: float
    higher_is_better: bool

    def worst(self, scores: Sequence[float]) -> tuple[int, float]:
        """The loader of the task that has lost most, and its loss; infinite if its score is not a number."""
        return max(
            ((task, self._lost(task, scores[task])) for task in self.learned), key=lambda pair: pair[1]
        )

    def excess(self, scores: Sequence[float]) -> float:
        """By how much the largest loss is above the tolerance; at most 0 if all tasks are within it."""
        task, lost = self.worst(scores)
        excess = lost - self.tolerance
        return min(excess, 0.0) if excess <= ROUNDING * max(1.0, abs(self.learned[task])) else excess

    def _lost(self, task: int, score: float) -> float:
        if math.isnan(score):
            return math.inf
        return (self.learned[task] - score) * (1 if self.higher_is_better else -1)
