"""The order in which the elements of a tensor lie in memory."""

from __future__ import annotations

from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements of a tensor fill a part of memory, in whatever order of the dimensions.

    Example:
        >>> import torch
        >>> image = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
        >>> is_dense(image), is_dense(image[1:]), is_dense(image[:, :2])
        (True, True, False)
    """
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def in_memory_order(tensor: Tensor) -> Tensor:
    """A view of one dimension of all elements of a dense tensor, in the order in which they are stored.

    Example:
        >>> import torch
        >>> in_memory_order(torch.arange(4).view(2, 2).t())
        tensor([0, 1, 2, 3])
    """
    return tensor.as_strided((tensor.numel(),), (1,))
