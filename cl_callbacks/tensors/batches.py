"""Functions on the samples of batches of any nesting: count, select, split and concatenate them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cl_callbacks.tensors.containers import flat_tensors, map_tensors


def count_samples(batch: Any) -> int:
    """Number of samples in a batch: the size of the first dimension that most of its tensors share.

    Among equally common sizes it is the largest; 0 if no tensor has a dimension.

    Example:
        >>> count_samples({"task": torch.zeros(1), "x": torch.zeros(4, 2), "y": torch.zeros(4)})
        4
    """
    sizes = Counter(t.shape[0] for t in flat_tensors(batch) if t.ndim)
    return max(sizes, key=lambda size: (sizes[size], size), default=0)


def take_samples(batch: Any, which: slice | Tensor) -> Any:
    """Selects samples from every tensor of a batch whose first dimension counts the samples.

    Args:
        batch: of any nesting.
        which: samples to select; a tensor of indices may be on another device than the batch.

    Example:
        >>> take_samples((torch.arange(3), torch.tensor(7)), slice(0, 1))
        (tensor([0]), tensor(7))
    """
    n = count_samples(batch)

    def take(t: Tensor) -> Tensor:
        return t[which.to(t.device) if isinstance(which, Tensor) else which]

    return map_tensors(lambda t: take(t) if t.ndim and t.shape[0] == n else t, batch)


def split_samples(batch: Any) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """Returns the tensors with one entry per sample, and a function that puts such tensors into the batch.

    Example:
        >>> tensors, rebuild = split_samples({"x": torch.zeros(2, 3), "name": "a"})
        >>> rebuild([t + 1 for t in tensors])["x"].sum()
        tensor(6.)
    """
    n = count_samples(batch)

    def is_sample(t: Tensor) -> bool:
        return t.ndim > 0 and t.shape[0] == n

    tensors = [t for t in flat_tensors(batch) if is_sample(t)]

    def rebuild(new: list[Tensor]) -> Any:
        remaining = iter(new)
        return map_tensors(lambda t: next(remaining) if is_sample(t) else t, batch)

    return tensors, rebuild


def cat_samples(first: Any, second: Any) -> Any:
    """Concatenates the samples of two batches; all other entries are those of the first.

    Example:
        >>> cat_samples((torch.arange(2), "a"), (torch.arange(3), "a"))[0]
        tensor([0, 1, 0, 1, 2])

    Raises:
        ValueError: samples of different shapes.
    """
    tensors, rebuild = split_samples(first)
    others, _ = split_samples(second)
    shapes = [[tuple(t.shape[1:]) for t in each] for each in (tensors, others)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"samples of shapes {shapes[0]} and {shapes[1]} do not fit into one batch: pad them to one length"
        )
    return rebuild([torch.cat(pair) for pair in zip(tensors, others, strict=True)])


def unlike_previous(batch: Any, order: Tensor) -> Tensor:
    """Whether samples in this order differ from the one before them: a mask ``(N - 1,)``.

    Example:
        >>> unlike_previous(torch.tensor([5, 7, 5]), torch.tensor([0, 2, 1]))
        tensor([False,  True])
    """
    unlike = torch.zeros(len(order) - 1, dtype=torch.bool, device=order.device)
    for t in split_samples(take_samples(batch, order))[0]:
        unlike |= (t[1:] != t[:-1]).reshape(len(unlike), -1).any(1).to(unlike.device)
    return unlike


def finite_samples(outputs: Tensor) -> Tensor:
    """Boolean mask ``(N,)`` of the samples whose outputs ``(N, ...)`` are all finite."""
    return torch.isfinite(outputs).reshape(len(outputs), -1).all(1)
