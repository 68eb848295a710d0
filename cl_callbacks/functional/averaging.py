"""Running averages over optimizer steps, in place."""

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
    if torch.compiler.is_compiling():  # compiled, the shares are tensors
        weighted = torch._foreach_mul(list(values), list(shares))
        torch._foreach_addcmul_(list(average), list(values), weighted)
    else:
        torch._foreach_addcmul_(list(average), list(values), list(values), list(shares))
