"""A few of many numbers, and what they say of all."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def stride_for(count: int, most: int) -> int:
    """The least odd stride with which no more than ``most`` of ``count`` numbers are taken.

    An even one would meet a few columns only of matrices as wide as a power of two.

    Example:
        >>> stride_for(100, 100), stride_for(1000, 100), stride_for(1001, 100)
        (1, 11, 11)
    """
    return -(-count // most) | 1


def every_nth(tensors: Iterable[Tensor], stride: int, first: int = 0) -> tuple[list[Tensor], int]:
    """Every n-th number of some tensors, as if these were one long one.

    Args:
        tensors: of any shapes.
        stride: from one number that is taken to the next.
        first: index of the first that is taken.

    Returns:
        What is taken of each tensor, as views of it where it is contiguous, and the index of the next one in
        whatever comes after them.

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
    """Quantiles of numbers of one dimension, without those that are NaN.

    Example:
        >>> quantiles_of(torch.tensor([1.0, torch.nan, 2.0, 3.0]), [0.0, 0.75])
        tensor([1.0000, 2.5000])
    """
    at = torch.tensor(list(probabilities), dtype=values.dtype, device=values.device)
    return values.nanquantile(at)
