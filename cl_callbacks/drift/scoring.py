"""Scores of detected changes against the true ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, MAY_BE_EMPTY


class BoundaryScore(NamedTuple):
    """Result of :func:`score_boundaries`.

    Attributes:
        precision: share of the alarms that were true; 1 if there was none.
        recall: share of the changes that were found; 1 if there was none.
        delay: median number of steps from a change to its alarm; NaN if none was found.
        false_alarms: number of alarms that no change explains.
    """

    precision: float
    recall: float
    delay: float
    false_alarms: int


@checked(alarms=MAY_BE_EMPTY, changes=MAY_BE_EMPTY, tolerance=AT_LEAST_ONE)
def score_boundaries(alarms: Sequence[int], changes: Sequence[int], tolerance: int) -> BoundaryScore:
    """Compares alarms with the true changes.

    Args:
        alarms: steps at which a change was found.
        changes: steps at which a change began.
        tolerance: an alarm is true if it comes less than this many steps after a change, and is the first
            one to do so.

    Example:
        >>> score_boundaries(alarms=[105, 160, 203], changes=[100, 200, 300], tolerance=50)
        BoundaryScore(precision=0.66..., recall=0.66..., delay=4.0, false_alarms=1)
    """
    delays: dict[int, int] = {}
    for alarm in sorted(alarms):
        explained = [c for c in changes if c <= alarm < c + tolerance and c not in delays]
        if explained:
            delays[explained[-1]] = alarm - explained[-1]
    return BoundaryScore(
        precision=len(delays) / len(alarms) if alarms else 1.0,
        recall=len(delays) / len(changes) if changes else 1.0,
        delay=float(statistics.median(delays.values())) if delays else math.nan,
        false_alarms=len(alarms) - len(delays),
    )
