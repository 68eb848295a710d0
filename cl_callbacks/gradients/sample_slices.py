"""Cuts single samples out of batches, where a network gives them the same outputs alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import count
from typing import Any

from torch import Tensor

from cl_callbacks.gradients.precision import rounding
from cl_callbacks.tensors.containers import flat_tensors, map_tensors

logger = logging.getLogger(__name__)


class SampleSlices:
    """Parts of batches that hold some of the samples, as long as these have the same outputs there.

    A sample is a row of the outputs. Which tensors of a batch have one entry for each is not known: those
    with as many entries as there are rows are cut, and the outputs tell whether that was right. It never is
    for time before samples, packed sequences, graphs or lists of images, nor where samples influence each
    other or the forward is random.

    Args:
        forward: function from a batch to its outputs ``(N, ...)``.

    Attributes:
        right: whether samples can be cut out of the batches so far; ``None`` before the first attempt.

    Example:
        >>> import torch
        >>> slices = SampleSlices(lambda batch: 2 * batch["x"])
        >>> batch = {"x": torch.ones(3, 1), "scale": torch.ones(())}
        >>> slices.alone(batch, [1], 2 * batch["x"])
        tensor([[2.]])
    """

    def __init__(self, forward: Callable[[Any], Tensor]) -> None:
        self._forward = forward
        self._cut: frozenset[int] | None = None  # positions of the tensors that have been cut
        self.right: bool | None = None

    def take(self, batch: Any, which: list[int], samples: int) -> Any | None:
        """The part of a batch of ``samples`` that holds some of them; ``None`` if it cannot be taken."""
        cut = self._positions(batch, samples)
        if not cut:
            return None
        position = count()
        try:
            return map_tensors(lambda t: t[which] if next(position) in cut else t, batch)
        except Exception as error:  # containers that check what is put into them raise errors of any type
            logger.debug("samples cannot be cut out of a %s: %s", type(batch).__name__, error)
            return None

    def split(self, batch: Any, samples: int) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]] | None:
        """Tensors with one entry per sample, and a function that puts others in their place."""
        cut = self._positions(batch, samples)
        if not cut:
            return None

        def rebuild(new: list[Tensor]) -> Any:
            position, remaining = count(), iter(new)
            return map_tensors(lambda t: next(remaining) if next(position) in cut else t, batch)

        return [t for i, t in enumerate(flat_tensors(batch)) if i in cut], rebuild

    def alone(self, batch: Any, which: list[int], outputs: Tensor) -> Tensor | None:
        """Outputs of some samples without the others; ``None``, also for later batches, if they differ.

        Args:
            batch: of all samples.
            which: indices of the samples.
            outputs: of the whole batch.
        """
        part = None if self.right is False else self.take(batch, which, len(outputs))
        found = None if part is None else self._outputs(part)
        if found is None or not alike(found, outputs[which]):
            self.right = False
            return None
        if self._cut is None:
            self._cut = self._positions(batch, len(outputs))
        return found

    def _outputs(self, part: Any) -> Tensor | None:
        try:
            return self._forward(part)
        except Exception as error:  # whatever a forward does with tensors that do not fit each other
            logger.debug("a part of a batch has no outputs: %s", error)
            return None

    def _positions(self, batch: Any, samples: int) -> frozenset[int]:
        """Which tensors are cut, in their order: always the same ones."""
        fitting = (i for i, t in enumerate(flat_tensors(batch)) if t.ndim and len(t) == samples)
        found = frozenset(fitting)
        if self._cut is None:
            return found
        return self._cut if self._cut <= found else frozenset()


def alike(some: Tensor, others: Tensor) -> bool:
    """Whether outputs are the same but for rounding, which may differ with the size of a batch.

    Example:
        >>> import torch
        >>> alike(torch.ones(2), torch.ones(2) + 1e-6), alike(torch.ones(2), torch.tensor([1.0, 1.1]))
        (True, False)
    """
    if some.shape != others.shape:
        return False
    some, others, tolerance = some.detach(), others.detach(), max(5e-3, 8 * rounding(others))
    return bool((some - others).norm() <= tolerance * others.norm())
