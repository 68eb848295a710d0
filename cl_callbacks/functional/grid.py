r"""Choice of a value on a grid by noisy scores, one for each value."""

from __future__ import annotations

import torch
from torch import Tensor

_AS_GOOD = 0.1
"""Share of the range of all scores by which one that counts as good as the best may be below it."""


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


def best_on_grid(scores: Tensor, higher_is_better: bool = True) -> int:
    """Index of the first score that is as good as the best, after smoothing with :func:`smoothed_on_grid`.

    As good are all within a tenth of the range from the worst to the best: the first of them is the weakest
    strength that does what the best does in a short trial, and leaves the most room for later tasks.

    A score that is not finite, of a run that diverged, is never chosen, and counts as the worst of the others
    for its neighbours.

    Args:
        scores: ``(n,)``, in the order of the grid.
        higher_is_better: whether higher scores are better.

    Raises:
        ValueError: no score is finite.

    Example:
        >>> best_on_grid(torch.tensor([0.5, 0.9, 0.5, 0.8, 0.8, 0.8]))
        4
        >>> best_on_grid(torch.tensor([2.0, 1.0, float("nan")]), higher_is_better=False)
        1
    """
    usable = scores.isfinite()
    if not usable.any():
        raise ValueError("there is nothing to choose from: no score is finite")
    gains = scores.double() if higher_is_better else -scores.double()
    gains = torch.where(usable, gains, gains[usable].min())
    smooth = torch.where(usable, smoothed_on_grid(gains), -torch.inf)
    best, worst = smooth.max(), smooth[usable].min()
    return int((smooth >= best - _AS_GOOD * (best - worst)).nonzero()[0])
