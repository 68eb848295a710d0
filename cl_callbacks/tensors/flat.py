"""Allocates many tensors as views of a few flat ones, so that one call can process them all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def flat_zeros(
    like: Sequence[Tensor], beside: Sequence[Tensor] | None = None, laid_out: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Allocates zeros of given shapes as views of one flat tensor for each device and dtype.

    Args:
        like: tensors that give the shapes and dtypes.
        beside: tensors that give the devices; default: ``like``.
        laid_out: whether each view has its elements in memory in the order of ``like``, such as that of
            ``channels_last``: operations on both are faster. By default it is the order of the dimensions,
            so that random numbers in it do not depend on the memory format.

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
        views |= {i: _laid_out(piece, like[i]) if laid_out else piece.view_as(like[i]) for i, piece in pieces}
    return flats, [views[i] for i in range(len(like))]


def _laid_out(piece: Tensor, like: Tensor) -> Tensor:
    order = memory_order(like)
    if order[:1] not in ([], [0]):  # rows of the view would have gaps between their elements
        return piece.view_as(like)
    stored = piece.view([like.shape[d] for d in order])
    return stored.permute([order.index(d) for d in range(like.ndim)])


def memory_order(tensor: Tensor) -> list[int]:
    """Dimensions of a tensor, from that with the largest steps in memory to that with the smallest.

    Example:
        >>> memory_order(torch.zeros(1, 2, 3, 4).to(memory_format=torch.channels_last))
        [0, 2, 3, 1]
    """
    # Of two equal steps the one of a single element is the inner one.
    steps = list(zip(tensor.stride(), tensor.shape, strict=True))
    return sorted(range(tensor.ndim), key=steps.__getitem__, reverse=True)
