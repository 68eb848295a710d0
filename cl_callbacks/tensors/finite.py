"""Copies that leave out NaN and infinity, so that a broken gradient or weight does not spoil the state."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cl_callbacks.compiled.fused import fusable


def finite(tensor: Tensor) -> Tensor:
    """Replaces NaN and infinity by 0, in a copy.

    Example:
        >>> finite(torch.tensor([1.0, -torch.inf, torch.nan]))
        tensor([1., 0., 0.])
    """
    if torch.compiler.is_dynamo_compiling():  # compiled, nan_to_num looks at one element after the other
        return torch.where(tensor.abs() < math.inf, tensor, 0.0)
    return tensor.nan_to_num(0.0, 0.0, 0.0)


def zero_nonfinite_(tensors: Sequence[Tensor]) -> None:
    """Sets NaN and infinity to 0, in place: the state of such a synapse starts from 0 again.

    Example:
        >>> t = [torch.tensor([1.0, torch.inf, torch.nan])]
        >>> zero_nonfinite_(t)
        >>> t
        [tensor([1., 0., 0.])]
    """
    for t in tensors:
        if torch.compiler.is_dynamo_compiling():
            t.copy_(finite(t))
        else:
            t.nan_to_num_(0.0, 0.0, 0.0)


def take_finite_(kept: Sequence[Tensor], new: Sequence[Tensor]) -> None:
    """Copies finite values, in place; elements whose new value is NaN or infinite stay as they were.

    The host does not wait for the device, and finite values are copied bit for bit.

    Example:
        >>> t = [torch.tensor([1.0, 2.0])]
        >>> take_finite_(t, [torch.tensor([3.0, torch.nan])])
        >>> t
        [tensor([3., 2.])]
    """
    for old, value in zip(kept, new, strict=True):
        value = value.to(old.dtype)
        # 0 times a number is 0: two passes, where isfinite makes four.
        old.copy_(torch.where(value * 0.0 == 0.0, value, old))


@fusable
def copy_each_(kept: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copies tensors, in place, as an operation that can be compiled.

    Example:
        >>> t = [torch.ones(2)]
        >>> copy_each_(t, [torch.tensor([3.0, torch.nan])])
        >>> t
        [tensor([3., nan])]
    """
    torch._foreach_copy_(list(kept), list(values))


@fusable
def copy_finite_(kept: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copies tensors, in place, with 0 for NaN and infinity.

    Example:
        >>> t = [torch.ones(2)]
        >>> copy_finite_(t, [torch.tensor([3.0, torch.nan])])
        >>> t
        [tensor([3., 0.])]
    """
    torch._foreach_copy_(list(kept), list(values))
    zero_nonfinite_(kept)


@fusable
def turn_into_update_(before: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Turns the weights before a step into its update, after minus before, in place; 0 if not finite.

    Example:
        >>> t = [torch.tensor([3.0, torch.inf])]
        >>> turn_into_update_(t, [torch.ones(2)])
        >>> t
        [tensor([-2.,  0.])]
    """
    torch._foreach_sub_(list(before), list(weights))
    torch._foreach_neg_(list(before))
    zero_nonfinite_(before)
