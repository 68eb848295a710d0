"""How many samples the batches of a training hold, without running the network for each of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from cl_callbacks.tensors.containers import flat_tensors, nodes

Place = tuple[Any, ...]
_MOST_KNOWN = 1000  # combinations of sizes that are remembered


class SampleCount:
    """Counts the samples of batches: the rows of the network's outputs.

    The network is run for the first batch, for the 4th, 16th, 64th and so on, and for any whose number is in
    doubt. It is told by the sizes of tensors and lists that have always equalled it, wherever in a batch they
    are: in a batch with the same sizes as an earlier one, by a size that has followed the number through a
    change, and by a first dimension or a length that stays the same. Nothing waits for the device.

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
        self._known: dict[tuple[tuple[Place, int], ...], int] = {}
        self._equal: dict[Place, set[int]] = {}  # places whose size was the number, and which numbers
        self._unequal: set[Place] = set()  # places whose size was another

    def __call__(self, batch: Any) -> int:
        """Returns the number of samples of the next batch."""
        self._batches += 1
        sizes = _sizes(batch)
        key = tuple(sizes.items())
        samples = self._told_by(sizes, key)
        if samples is None or math.log(self._batches, 4).is_integer():
            samples = self._rows(batch)
            for place, size in sizes.items():
                if size == samples:
                    self._equal.setdefault(place, set()).add(size)
                else:
                    self._unequal.add(place)
            if len(self._known) == _MOST_KNOWN:
                self._known.clear()
            self._known[key] = samples
        return samples

    def _told_by(self, sizes: dict[Place, int], key: tuple[tuple[Place, int], ...]) -> int | None:
        """Number of samples as the sizes tell it; ``None`` if it is in doubt."""
        places = {place: self._equal[place] for place in (self._equal.keys() & sizes.keys()) - self._unequal}
        if places and key in self._known:
            return self._known[key]
        followed = {sizes[place] for place, numbers in places.items() if len(numbers) > 1}
        if not followed:
            first = [place for place in places if place[-1] in (0, "length")]
            if all(sizes[place] in places[place] for place in first):
                followed = {sizes[place] for place in first}
        return followed.pop() if len(followed) == 1 else None


def _sizes(batch: Any) -> dict[Place, int]:
    """Size of every dimension of every tensor, and of every list, by where it is."""
    sizes: dict[Place, int] = {}
    for path, node in nodes(batch):
        if isinstance(node, Tensor):
            sizes |= {(*path, dimension): size for dimension, size in enumerate(node.shape)}
        elif isinstance(node, list):
            sizes |= {(*path, "length"): len(node)}
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
