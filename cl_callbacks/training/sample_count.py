"""How many samples the batches of a training hold, without running the network for each of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from cl_callbacks.tensors.containers import flat_tensors, nodes

Place = tuple[Any, ...]


class SampleCount:
    """Counts the samples of batches: the rows of the network's outputs.

    The network is run for the first batch, and for the 4th, 16th, 64th and so on. In between, the number is
    read from the sizes of tensors and lists that equalled it so far, wherever in a batch they are; and the
    network is run once more if these sizes contradict each other, or if there are none. Nothing waits for the
    device.

    Args:
        rows: function that runs the network on a batch, and returns the number of rows of its outputs.

    Example:
        >>> import torch
        >>> count = SampleCount(lambda batch: len(batch["y"]))
        >>> [count({"x": torch.zeros(9, n), "y": torch.zeros(n)}) for n in (9, 9, 2)]
        [9, 9, 2]
    """

    def __init__(self, rows: Callable[[Any], int]) -> None:
        self._rows = rows
        self._batches = 0
        self._places: set[Place] = set()

    def __call__(self, batch: Any) -> int:
        """Returns the number of samples of the next batch."""
        self._batches += 1
        sizes = _sizes(batch)
        found = {sizes.get(place) for place in self._places}
        if len(found) == 1 and None not in found and not math.log(self._batches, 4).is_integer():
            return next(size for size in found if size is not None)
        samples = self._rows(batch)
        equal = {place for place, size in sizes.items() if size == samples}
        self._places = (equal & self._places) or equal
        return samples


def _sizes(batch: Any) -> dict[Place, int]:
    """Size of every dimension of every tensor, and of every list, by where it is."""
    sizes: dict[Place, int] = {}
    for path, node in nodes(batch):
        if isinstance(node, Tensor):
            sizes |= {(*path, dimension): size for dimension, size in enumerate(node.shape)}
        elif isinstance(node, list):
            sizes[(*path, "length")] = len(node)
    return sizes


def agreed_samples(batch: Any) -> int:
    """Number of entries of all tensors of a batch; 0 if there are none, or if they contradict each other.

    Example:
        >>> import torch
        >>> agreed_samples((torch.zeros(4, 2), torch.zeros(4))), agreed_samples("text")
        (4, 0)
    """
    sizes = {len(tensor) for tensor in flat_tensors(batch) if tensor.ndim}
    return sizes.pop() if len(sizes) == 1 else 0
