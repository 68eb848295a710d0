"""Allocates many tensors as views of a few flat ones, so that one call can process them all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def flat_zeros(
    like: Sequence[Tensor], beside: Sequence[Tensor] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Allocates zeros of given shapes as views of one flat tensor for each device and dtype.

    The views have the strides of ``like``, which those of images are not if ``like`` is in the layout
    ``torch.channels_last``: an operation on several tensors is fast if the strides of all are the same.

    Args:
        like: tensors that give the shapes, strides and dtypes.
        beside: tensors that give the devices; default: ``like``.

    Returns:
        The flat tensors, of one dimension; the views, aligned with ``like``.

    Example:
        >>> (flat,), (a, b) = flat_zeros([torch.ones(2), torch.ones(1, 1)])
        >>> flat += 1
        >>> a, b
        (tensor([1., 1.]), tensor([[1.]]))
    """
    flats: list[Tensor] = []
    views: dict[int, Tensor] = {}
    kinds = [(b.device, t.dtype) for t, b in zip(like, beside or like, strict=True)]
    for device, dtype in dict.fromkeys(kinds):
        mine = [i for i, kind in enumerate(kinds) if kind == (device, dtype)]
        sizes = [like[i].numel() for i in mine]
        flat = torch.zeros(sum(sizes), dtype=dtype, device=device)
        flats.append(flat)
        pieces = zip(mine, flat.split(sizes), strict=True)
        views |= {i: piece.as_strided(like[i].shape, dense_strides(like[i])) for i, piece in pieces}
    return flats, [views[i] for i in range(len(like))]


def dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """The strides of a tensor, but without gaps in memory if it has some.

    Example:
        >>> image = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
        >>> dense_strides(image), dense_strides(image[:, :2])
        ((48, 1, 12, 3), (32, 1, 8, 2))
    """
    return torch.empty_like(tensor, device="meta").stride()
