"""Search for the least share of old weights at which old tasks are within their tolerance."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

RESOLUTION = 1 / 128
"""Width of an interval of shares that is not divided any more."""


class Try(NamedTuple):
    """A share that was tried, and the excess there: at most 0 where it holds."""

    share: float
    excess: float


def least_share(excess: Callable[[float], float], at_none: float, tries: int) -> list[Try]:
    """Tries shares from 0 to 1 by bisection, and returns all that were tried, the best of them first.

    The best is the least share that holds; if none does, that with the least excess. As long as none holds
    the last try is the share 1. The excess need not fall as the share grows, since only shares count that
    were tried; then there may be a smaller one that holds, between two that were tried.

    Args:
        excess: the excess at a share.
        at_none: the excess at the share 0, which is not tried again.
        tries: number of shares that may be tried.

    Example:
        >>> tried = least_share(lambda share: 0.3 - share, 0.3, tries=4)
        >>> tried[0].share, sorted(each.share for each in tried)
        (0.3125, [0.0, 0.25, 0.3125, 0.375, 0.5])
    """
    tried, low, high = [Try(0.0, at_none)], 0.0, 1.0
    if at_none <= 0:
        return tried
    for left in range(tries - 1, -1, -1):
        if high - low <= RESOLUTION and high < 1:
            break
        # The end of the interval is known to hold, unless it is 1, which is left for the end.
        share = 1.0 if high == 1 and (left == 0 or 1 - low <= RESOLUTION) else (low + high) / 2
        tried.append(Try(share, excess(share)))
        if share == 1:
            break
        low, high = (low, share) if tried[-1].excess <= 0 else (share, high)
    return sorted(tried, key=lambda each: (0.0, each.share) if each.excess <= 0 else each[::-1])
