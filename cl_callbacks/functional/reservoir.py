"""Which samples of a stream a memory of fixed size keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence


def reservoir_keys(uniform: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    r"""Keys of samples, of which a memory keeps the :math:`m` smallest.

    .. math:: k_i = -\ln(1-u_i) / w_i

    With equal weights every set of :math:`m` of :math:`n` samples is equally likely, so that each sample is
    kept with probability :math:`m/n`, as in a reservoir whose slots are overwritten at random. Otherwise the
    samples are drawn one after the other in proportion to their weights, without replacement. The smallest
    keys of several streams together are the reservoir of all of them.

    Source: Efraimidis & Spirakis 2006, weighted random sampling with a reservoir.

    Args:
        uniform: independent numbers :math:`u_i` from 0 to 1.
        weights: :math:`w_i`, aligned with them; default: 1. A weight that is not above 0 gives an infinite
            key: such a sample is kept only while there is room.

    Example:
        >>> [round(key, 3) for key in reservoir_keys([0.5, 0.5], [1.0, 2.0])]
        [0.693, 0.347]
    """
    sizes = [1.0] * len(uniform) if weights is None else weights
    return [-math.log1p(-u) / w if w > 0 else math.inf for u, w in zip(uniform, sizes, strict=True)]


def fullest(last_keys: Sequence[float], counts: Sequence[int]) -> int:
    """Index of the group that gives up a sample when a memory balanced by groups is too full.

    It is the one with the most samples; among several of them, that whose largest key is largest.

    Args:
        last_keys: the largest key in each group.
        counts: number of samples in each group.

    Example:
        >>> fullest([0.1, 0.9, 0.3], [4, 2, 4])
        2
    """
    return max(range(len(counts)), key=lambda group: (counts[group], last_keys[group]))
