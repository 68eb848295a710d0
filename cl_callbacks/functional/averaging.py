"""Averages over optimizer steps and over tasks, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cl_callbacks.compiled.fused import fusable
from cl_callbacks.tensors.finite import zero_nonfinite_


def newest_share(decay: float, steps: int) -> float:
    r"""Share of the newest value in a bias-corrected exponential average of ``steps`` values.

    .. math:: \frac{1-\beta}{1-\beta^t}

    is 1 for the first value and falls to :math:`1-\beta`; an average with this share in each step equals the
    exponential average from zero divided by :math:`1-\beta^t`. For :math:`\beta=1` it is :math:`1/t`, which
    gives the mean of all values.

    Args:
        decay: :math:`\beta`, from 0 to 1.
        steps: :math:`t`, including the newest.

    Example:
        >>> newest_share(0.5, 1), newest_share(0.5, 2)
        (1.0, 0.6666666666666666)
    """
    return 1.0 / steps if decay == 1.0 else (1.0 - decay) / (1.0 - decay**steps)


@fusable(numbers=["shares"])
def average_(average: Sequence[Tensor], values: Sequence[Tensor], shares: Sequence[float]) -> None:
    r"""Adds values to running averages, each with its share: :math:`m \leftarrow m + w(x - m)`.

    Values that are not finite are left out.

    Example:
        >>> m = [torch.tensor([1.0])]
        >>> average_(m, [torch.tensor([3.0])], [0.25])
        >>> m
        [tensor([1.5000])]
    """
    distance = torch._foreach_sub(list(values), list(average))
    torch._foreach_mul_(distance, list(shares))
    zero_nonfinite_(distance)
    torch._foreach_add_(list(average), distance)


@fusable(numbers=["shares"])
def average_square_(average: Sequence[Tensor], values: Sequence[Tensor], shares: Sequence[float]) -> None:
    r"""Adds squares of values to running averages, each with its share: :math:`m \leftarrow (1-w)m + wx^2`.

    Example:
        >>> m = [torch.tensor([1.0])]
        >>> average_square_(m, [torch.tensor([3.0])], [0.25])
        >>> m
        [tensor([3.])]
    """
    torch._foreach_mul_(list(average), [1.0 - share for share in shares])
    if torch.compiler.is_dynamo_compiling():  # compiled, the shares are tensors
        weighted = torch._foreach_mul(list(values), list(shares))
        torch._foreach_addcmul_(list(average), list(values), weighted)
    else:
        torch._foreach_addcmul_(list(average), list(values), list(values), list(shares))


@fusable(numbers=["share"])
def draw_back_(
    weights: Sequence[Tensor],
    old: Sequence[Tensor],
    total: Sequence[Tensor],
    share: float | Sequence[float],
) -> None:
    r"""Moves weights towards old ones: :math:`\theta \leftarrow (1-b)\theta + b\,\theta_{\text{old}}`.

    A weight that no task before has trained, with :math:`N=0`, has no old value and stays where it is.

    Source: slow and fast averaging, SFA (arXiv 2501.05559).

    Args:
        weights: :math:`\theta`.
        old: :math:`\theta_{\text{old}}`, one tensor of the same shape per weight.
        total: :math:`N`, likewise, at least 0.
        share: :math:`b`, from 0 to 1, or one for each tensor.

    Example:
        >>> theta = [torch.tensor([4.0, 4.0])]
        >>> draw_back_(theta, [torch.zeros(2)], [torch.tensor([2.0, 0.0])], 0.25)
        >>> theta
        [tensor([3., 4.])]
    """
    distance = torch._foreach_sub(list(old), list(weights))
    torch._foreach_mul_(distance, torch._foreach_sign(list(total)))
    torch._foreach_mul_(distance, share)
    torch._foreach_add_(list(weights), distance)


def merge_weights_(
    weights: Sequence[Tensor],
    old: Sequence[Tensor],
    total: Sequence[Tensor],
    new: Sequence[Tensor],
    old_share: float | None = None,
) -> None:
    r"""Merges the weights after a task with those after the tasks before, in place.

    .. math:: \theta \leftarrow \frac{N\theta_{\text{old}} + n\,\theta}{N + n}, \qquad
              N \leftarrow N + n, \qquad \theta_{\text{old}} \leftarrow \theta .

    With :math:`n=1` it is the running average
    :math:`\theta_{\text{old}} + (\theta-\theta_{\text{old}})/(t+1)` after :math:`t` tasks before. With the
    importance of each weight for the task it is the minimum of the sum of the tasks' quadratics
    :math:`n_k(\theta-\theta_k)^2`. With a fixed share :math:`b` of the old weights,

    .. math:: \theta \leftarrow (1-b)\theta + b\,\theta_{\text{old}} .

    A weight of which only one of the two has a value, because the other has :math:`N=0` or :math:`n=0`, takes
    that one; where both are 0, and with a fixed share where :math:`N=0`, it stays where it is.

    Sources: Lee et al. 2017, IMM-mode (arXiv 1703.08475); Matena & Raffel 2022, Fisher-weighted averages
    (2111.09832); Wortsman et al. 2022, WiSE-FT, for a fixed share (2109.01903).

    Args:
        weights: :math:`\theta`.
        old: :math:`\theta_{\text{old}}`, one tensor of the same shape per weight.
        total: :math:`N`, likewise: the sum of :math:`n` over the tasks before, at least 0.
        new: :math:`n`, likewise, at least 0.
        old_share: :math:`b`, from 0 to 1.

    Example:
        >>> theta, old, total = [torch.tensor([6.0])], [torch.tensor([2.0])], [torch.tensor([3.0])]
        >>> merge_weights_(theta, old, total, [torch.tensor([1.0])])
        >>> theta, total
        ([tensor([3.])], [tensor([4.])])
    """
    for weight, before, known, more in zip(weights, old, total, new, strict=True):
        wide = torch.promote_types(weight.dtype, before.dtype)
        share = torch.ones_like(known, dtype=wide)
        if old_share is None:
            sum_of_both = known.to(wide) + more
            share = torch.where(sum_of_both > 0, more / sum_of_both, share)
        else:
            share.masked_fill_(known > 0, 1.0 - old_share)
        # `lerp` returns its ends bit for bit at shares of 0 and 1.
        weight.copy_(torch.lerp(before.to(wide), weight.to(wide), share))
        known.add_(more)
        before.copy_(weight)
