"""Regular subsamples of many numbers, and quantiles of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def stride_for(count: int, most: int) -> int:
    """Smallest odd stride with which at most ``most`` of ``count`` numbers are taken.

    An even one would sample only a few columns of matrices whose width is a power of two.

    Example:
        >>> stride_for(100, 100), stride_for(1000, 100), stride_for(1001, 100)
        (1, 11, 11)
    """
    return -(-count // most) | 1


def every_nth(tensors: Iterable[Tensor], stride: int, first: int = 0) -> tuple[list[Tensor], int]:
    """Takes every n-th element of several tensors, as if they were concatenated.

    Args:
        tensors: of any shapes.
        stride: distance between elements that are taken.
        first: index of the first one.

    Returns:
        The elements of each tensor, as a view where it is contiguous, and the index of the next element in
        a tensor that would follow.

    Example:
        >>> every_nth([torch.arange(4), torch.arange(4, 6), torch.arange(6, 9)], stride=3)
        ([tensor([0, 3]), tensor([], dtype=torch.int64), tensor([6])], 0)
    """
    taken = []
    for tensor in tensors:
        taken.append(tensor.flatten()[first::stride])
        first = (first - tensor.numel()) % stride
    return taken, first


def quantiles_of(values: Tensor, probabilities: Iterable[float]) -> Tensor:
    """Quantiles of a tensor of shape ``(N,)``, ignoring NaN.

    Example:
        >>> quantiles_of(torch.tensor([1.0, torch.nan, 2.0, 3.0]), [0.0, 0.75])
        tensor([1.0000, 2.5000])
    """
    at = torch.tensor(list(probabilities), dtype=values.dtype, device=values.device)
    return values.nanquantile(at)
