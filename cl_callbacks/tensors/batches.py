"""Functions on batches of any nesting: select, split, count and concatenate their samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor


def map_tensors(function: Callable[[Tensor], Any], batch: Any) -> Any:
    """Applies a function to each tensor of a batch, and returns containers of the same types."""
    return apply_to_collection(batch, Tensor, function, allow_frozen=True)


def flat_tensors(tree: Any) -> list[Tensor]:
    """List of the tensors in nested containers, in order."""
    found: list[Tensor] = []
    map_tensors(found.append, tree)
    return found


def plain_containers(batch: Any) -> Any:
    """Converts the containers of a batch to dicts, lists and tuples, as a checkpoint may hold them."""
    if isinstance(batch, Mapping):
        return {key: plain_containers(value) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        items = [plain_containers(item) for item in batch]
        return items if isinstance(batch, list) else tuple(items)
    return batch


def is_plain(batch: Any) -> bool:
    """Whether :func:`plain_containers` can stand for the batch without loss.

    Example:
        >>> is_plain({"x": [torch.zeros(1), "a", None]}), is_plain(object())
        (True, False)
    """
    if isinstance(batch, Mapping):
        return all(is_plain(value) for value in batch.values())
    if isinstance(batch, list | tuple):
        return not hasattr(batch, "_fields") and all(is_plain(item) for item in batch)
    return batch is None or isinstance(batch, Tensor) or type(batch) in (str, bytes, bool, int, float)


def count_samples(batch: Any) -> int:
    """Number of samples in a batch: the size of the first dimension that most of its tensors share.

    Among equally common sizes it is the largest; 0 if no tensor has a dimension.

    Example:
        >>> count_samples({"task": torch.zeros(1), "x": torch.zeros(4, 2), "y": torch.zeros(4)})
        4
    """
    sizes: Counter[int] = Counter()
    map_tensors(lambda t: sizes.update([t.shape[0]]) if t.ndim else None, batch)
    return max(sizes, key=lambda size: (sizes[size], size), default=0)


def take_samples(batch: Any, which: slice | Tensor) -> Any:
    """Selects samples from every tensor of a batch whose first dimension counts the samples.

    Example:
        >>> take_samples((torch.arange(3), torch.tensor(7)), slice(0, 1))
        (tensor([0]), tensor(7))
    """
    n = count_samples(batch)
    return map_tensors(lambda t: t[which] if t.ndim and t.shape[0] == n else t, batch)


def split_samples(batch: Any) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """Returns the tensors with one entry per sample, and a function that puts such tensors into the batch.

    Example:
        >>> tensors, rebuild = split_samples({"x": torch.zeros(2, 3), "name": "a"})
        >>> rebuild([t + 1 for t in tensors])["x"].sum()
        tensor(6.)
    """
    n = count_samples(batch)
    tensors: list[Tensor] = []

    def is_sample(t: Tensor) -> bool:
        return t.ndim > 0 and t.shape[0] == n

    map_tensors(lambda t: tensors.append(t) if is_sample(t) else None, batch)

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


def finite_samples(outputs: Tensor) -> Tensor:
    """Boolean mask ``(N,)`` of the samples whose outputs ``(N, ...)`` are all finite."""
    return torch.isfinite(outputs).reshape(len(outputs), -1).all(1)
