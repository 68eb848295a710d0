"""Copies that leave out what is not finite: a gradient or a weight that is lost must not spoil the state."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cl_callbacks.compiled.fused import fusable


def finite(tensor: Tensor) -> Tensor:
    """A tensor with 0 for what is not finite.

    Example:
        >>> finite(torch.tensor([1.0, -torch.inf, torch.nan]))
        tensor([1., 0., 0.])
    """
    if torch.compiler.is_compiling():  # compiled, nan_to_num looks at one element after the other
        return torch.where(tensor.abs() < math.inf, tensor, 0.0)
    return tensor.nan_to_num(0.0, 0.0, 0.0)


def zero_nonfinite_(tensors: Sequence[Tensor]) -> None:
    """Sets what is not finite to 0, in place: a synapse that an infinite gradient met starts anew.

    Example:
        >>> t = [torch.tensor([1.0, torch.inf, torch.nan])]
        >>> zero_nonfinite_(t)
        >>> t
        [tensor([1., 0., 0.])]
    """
    for t in tensors:
        if torch.compiler.is_compiling():
            t.copy_(finite(t))
        else:
            t.nan_to_num_(0.0, 0.0, 0.0)


def take_finite_(kept: Sequence[Tensor], new: Sequence[Tensor]) -> None:
    """Takes over what is finite, in place: a synapse that has met anything else stays as it was.

    Nothing waits for the device, and what is finite is taken bit for bit.

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
    """Copies.

    Example:
        >>> t = [torch.ones(2)]
        >>> copy_each_(t, [torch.tensor([3.0, torch.nan])])
        >>> t
        [tensor([3., nan])]
    """
    torch._foreach_copy_(list(kept), list(values))


@fusable
def copy_finite_(kept: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copies, with 0 for what is not finite.

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
    """Turns the weights before a step into the step's update, in place; 0 for what is not finite.

    Example:
        >>> t = [torch.tensor([3.0, torch.inf])]
        >>> turn_into_update_(t, [torch.ones(2)])
        >>> t
        [tensor([-2.,  0.])]
    """
    torch._foreach_sub_(list(before), list(weights))
    torch._foreach_neg_(list(before))
    zero_nonfinite_(before)
