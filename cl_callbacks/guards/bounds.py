"""What a declared argument may be beyond its type: the range of a number, and whether a list may be empty."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """Range of a number, or of each number in a list.

    Attributes:
        least: the least value that is allowed.
        most: the largest value that is allowed.
        above: a value that is too small itself.
        below: a value that is too large itself.
        endless: whether infinity is allowed.
        empty: whether a list may be empty.

    Example:
        >>> share = Bounds(least=0, below=1)
        >>> str(share), share.allow(0.5), share.allow(1), share.allow(float("nan"))
        (' from 0 to below 1', True, False, False)
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    endless: bool = False
    empty: bool = False

    def allow(self, number: float) -> bool:
        """Whether a number is within the bounds; NaN never is."""
        below = number < self.below or self.below == math.inf
        within = self.least <= number <= self.most and number > self.above and below
        return within and (self.endless or abs(number) < math.inf)

    def __str__(self) -> str:
        """The range as the end of a phrase, with the space or comma before it."""
        low = f"{self.least:g}" if self.least > -math.inf else ""
        high = f"{self.most:g}" if self.most < math.inf else f"below {self.below:g}"
        bounded = min(self.most, self.below) < math.inf
        if self.above > -math.inf:
            end = " and at most " if self.most < math.inf else " and "
            return f" above {self.above:g}" + (f"{end}{high}" if bounded else "")
        if low:
            return f" from {low} to {high}" if bounded else f", at least {low}"
        return f", at most {high}" if self.most < math.inf else f" {high}" if bounded else ""


ANY = Bounds()
POSITIVE = Bounds(above=0)
NON_NEGATIVE = Bounds(least=0)
AT_LEAST_ONE = Bounds(least=1)
SHARE = Bounds(least=0, most=1)
"""From 0 to 1."""
MAY_BE_EMPTY = Bounds(empty=True)
ENDLESS = Bounds(above=0, endless=True)
"""Above 0, infinity included."""
