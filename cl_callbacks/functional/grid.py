r"""Choice of a value on a grid by noisy scores, one for each value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

_AS_GOOD = 0.1
"""Share of the range of all scores by which one that counts as good as the best may be below it."""
_NOISE = 0.005
"""Share of the best score within which others count as good as it, however small the range."""


def smoothed_on_grid(scores: Tensor) -> Tensor:
    r"""Averages each score with those of its neighbours, so that one lucky run does not win.

    :math:`\bar s_i=(s_{i-1}+2s_i+s_{i+1})/4`, and at the ends :math:`\min(s_i,(3s_i+s_{i\pm1})/4)`: there a
    neighbour can only lower, since an end must not gain from a peak that is beside it.

    Args:
        scores: ``(n,)`` with at least two, in the order of the grid; higher ones are better.

    Returns:
        Smoothed scores ``(n,)``, in float64.

    Example:
        >>> smoothed_on_grid(torch.tensor([0.0, 1.0, 0.0, 0.0]))
        tensor([0.0000, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """
    scores = scores.double()
    beyond = torch.cat([scores[:1], scores, scores[-1:]])
    smooth = (beyond[:-2] + 2.0 * scores + beyond[2:]) / 4.0
    smooth[[0, -1]] = torch.minimum(smooth[[0, -1]], scores[[0, -1]])
    return smooth


def as_importance_adds_up(factors: Sequence[float], scores: Sequence[float], tasks: int) -> list[float]:
    r"""Scores to expect on the second to the last task, when the importance of all tasks before adds up.

    A pull towards the first task at the factor :math:`f` scored :math:`s(f)`. Towards :math:`k` tasks it is
    that of :math:`kf`, so that the mean over a sequence of :math:`T` tasks is

    .. math:: \hat s(f)=\frac1{T-1}\sum_{k=1}^{T-1}s(kf),

    with :math:`s` between the factors linear in :math:`\log f`, and constant beyond the highest.

    Args:
        factors: ``(n,)``, positive and rising.
        scores: ``(n,)``; at a factor without a finite score the answer is NaN, and others see its neighbours.
        tasks: :math:`T`, at least 2.

    Example:
        >>> as_importance_adds_up([1.0, 2.0, 4.0], [1.0, 0.8, 0.4], tasks=3)[0]
        0.9
    """
    at = [(math.log(factor), score) for factor, score in zip(factors, scores, strict=True)]
    known = [(x, score) for x, score in at if math.isfinite(score)]
    return [
        sum(_between(known, x + math.log(k)) for k in range(1, tasks)) / (tasks - 1)
        if math.isfinite(score)
        else math.nan
        for x, score in at
    ]


def _between(points: Sequence[tuple[float, float]], x: float) -> float:
    """Linear interpolation between points that rise in x, constant beyond the last."""
    for (left, low), (right, high) in pairwise(points):
        if x < right:
            return low + (high - low) * (x - left) / (right - left)
    return points[-1][1]


def best_on_grid(
    scores: Tensor, higher_is_better: bool = True, usual: int = 0, choice: int | None = None
) -> int:
    """Index, as near as can be to the usual one, of a score as good as the best, after smoothing.

    As good are all within a tenth of the range from the worst to the best, or within half a hundredth of the
    best: what is usual is left only as far as the scores demand. The smoothing is that of
    :func:`smoothed_on_grid`.

    A score that is not finite, of a run that diverged, is never chosen, and counts as the worst of the others
    for its neighbours.

    Args:
        scores: ``(n,)``, in the order of the grid.
        higher_is_better: whether higher scores are better.
        usual: index of the value to prefer; of two that are equally near the one before it.
        choice: how many of the first values may be chosen; the others are neighbours only.

    Raises:
        ValueError: no score that may be chosen is finite.

    Example:
        >>> best_on_grid(torch.tensor([0.5, 0.9, 0.5, 0.8, 0.8, 0.8]))
        4
        >>> best_on_grid(torch.tensor([0.8, 0.8, 0.8]), usual=1)
        1
        >>> best_on_grid(torch.tensor([2.0, 1.0, float("nan")]), higher_is_better=False)
        1
    """
    usable = scores.isfinite()
    if not usable[:choice].any():
        raise ValueError("there is nothing to choose from: no score is finite")
    gains = scores.double() if higher_is_better else -scores.double()
    gains = torch.where(usable, gains, gains[usable].min())
    smooth = torch.where(usable, smoothed_on_grid(gains), -torch.inf)
    smooth = smooth[:choice]
    best, worst = smooth.max(), smooth[usable[:choice]].min()
    good = (smooth >= best - max(_AS_GOOD * (best - worst), _NOISE * abs(best))).nonzero().flatten().tolist()
    return min(good, key=lambda index: abs(index - usual))
