"""Per-sample gradients of one parameter, and sums of their magnitudes without holding all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Magnitude = Callable[[Tensor], Tensor]
"""In-place function that is summed over samples: ``Tensor.square_`` or ``Tensor.abs_``.

It is elementwise and multiplicative: the magnitude of a product is the product of the magnitudes.
"""


class PerSample(ABC):
    """The gradients of one parameter, one for each of ``samples`` samples."""

    samples: int
    shape: torch.Size

    @property
    def row_bytes(self) -> int:
        """Bytes of the gradient of one sample, or of the copies made to compute it, if that is more."""
        return self.shape.numel() * 4

    @abstractmethod
    def rows(self, start: int, stop: int) -> Tensor:
        """Gradients of samples ``start`` to ``stop``, of shape ``(stop - start, *shape)``."""

    def add_to(self, total: Tensor, magnitude: Magnitude, max_bytes: int) -> None:
        r"""Adds the sum over samples, such as :math:`\sum_n g_n^2`, to ``total``, in place."""
        add_in_chunks([self], total, magnitude, max_bytes)


def add_in_chunks(parts: list[PerSample], total: Tensor, magnitude: Magnitude, max_bytes: int) -> None:
    r"""Adds :math:`\sum_n (\sum_j g_n^{(j)})^2` over samples :math:`n` and uses :math:`j` of a parameter.

    Args:
        parts: the same samples' gradients from each use of one parameter.
        total: to which the sum is added, in place; of the parameter's shape.
        magnitude: the square, or the absolute value instead.
        max_bytes: bound on the per-sample gradients, or the copies they are computed from, that are held
            at a time, at least those of one sample. Fastest where they fit into a processor's cache.
    """
    samples = parts[0].samples
    step = max(1, min(samples, max_bytes // max(part.row_bytes for part in parts)))
    for start in range(0, samples, step):
        stop = min(start + step, samples)
        rows = parts[0].rows(start, stop)
        for part in parts[1:]:
            rows = rows + part.rows(start, stop)
        add_magnitudes(rows, total, magnitude)


def add_magnitudes(rows: Tensor, total: Tensor, magnitude: Magnitude) -> None:
    """Adds the magnitudes of gradients ``(N, *shape)``, summed over ``N``, to ``total``; overwrites them."""
    if len(rows) == 1 and magnitude is Tensor.square_:
        total.addcmul_(rows[0], rows[0])  # one pass over the memory instead of two
    else:
        total.add_(magnitude(rows).sum(0))


@dataclass
class Dense(PerSample):
    """Gradients that are small enough to be held: biases and affine scales."""

    values: Tensor

    def __post_init__(self) -> None:
        self.samples, self.shape = self.values.shape[0], self.values.shape[1:]

    def rows(self, start: int, stop: int) -> Tensor:
        """See :class:`PerSample`."""
        return self.values[start:stop].clone()

    def add_to(self, total: Tensor, magnitude: Magnitude, max_bytes: int) -> None:
        """See :class:`PerSample`."""
        total.add_(magnitude(self.values.clone()).sum(0))


@dataclass
class Outer(PerSample):
    r"""Gradients :math:`\sum_t \delta_{nt} a_{nt}^\top` in ``G`` groups of channels.

    ``delta`` is ``(N, G, T, O)``; ``inputs`` is ``(N, G, I, T)``, where ``I`` and ``T`` may be several
    dimensions each; and the parameter has ``(G * O, I)`` elements, in any ``shape``.
    """

    delta: Tensor
    inputs: Tensor
    shape: torch.Size

    def __post_init__(self) -> None:
        self.samples = self.delta.shape[0]

    @property
    def row_bytes(self) -> int:
        """See :class:`PerSample`."""
        return max(self.shape.numel(), self.inputs[0].numel()) * 4

    def sides(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Cotangents ``(n, G, T, O)`` and inputs ``(n, G, T, I)`` of ``n = stop - start`` samples."""
        delta = self.delta[start:stop]
        return delta, self.inputs[start:stop].reshape(*delta.shape[:2], -1, delta.shape[2]).mT

    def rows(self, start: int, stop: int) -> Tensor:
        """See :class:`PerSample`."""
        delta, inputs = self.sides(start, stop)
        return (delta.mT @ inputs).reshape(stop - start, *self.shape)

    def add_to(self, total: Tensor, magnitude: Magnitude, max_bytes: int) -> None:
        """See :class:`PerSample`."""
        if self.delta.shape[2] > 1:
            add_in_chunks([self], total, magnitude, max_bytes)
            return
        # One position: the square of a product is the product of the squares, one matmul for all n.
        delta, inputs = (magnitude(t.squeeze(2).clone()) for t in self.sides(0, self.samples))
        total.add_(torch.einsum("ngo,ngi->goi", delta, inputs).reshape(self.shape))


class ClosedForm:
    """Gradients of all parameters of one call, which are computed when they are used.

    They need copies in float32 of what was in half precision: those of one call at a time, or of less.

    Args:
        compute: function from the first sample and the one after the last to their gradients, by parameter.
        samples: number of samples in the call.
    """

    def __init__(self, compute: Callable[[int, int], dict[str, PerSample]], samples: int) -> None:
        self._compute, self.samples = compute, samples
        self._last: tuple[tuple[int, int], dict[str, PerSample]] | None = None

    def of(self, start: int, stop: int) -> dict[str, PerSample]:
        """Gradients of some samples, by parameter; the last result is kept for the next parameter."""
        if self._last is None or self._last[0] != (start, stop):
            self._last = ((start, stop), self._compute(start, stop))
        return self._last[1]


@dataclass
class OfCall(PerSample):
    """Gradients of one parameter of a :class:`ClosedForm`."""

    call: ClosedForm
    name: str
    shape: torch.Size

    def __post_init__(self) -> None:
        self.samples = self.call.samples

    @property
    def computed(self) -> PerSample:
        """The gradients of all samples."""
        return self.call.of(0, self.samples)[self.name]

    @property
    def row_bytes(self) -> int:
        """See :class:`PerSample`."""
        return self.call.of(0, 1)[self.name].row_bytes

    def rows(self, start: int, stop: int) -> Tensor:
        """See :class:`PerSample`."""
        return self.call.of(start, stop)[self.name].rows(0, stop - start)

    def add_to(self, total: Tensor, magnitude: Magnitude, max_bytes: int) -> None:
        """See :class:`PerSample`."""
        self.computed.add_to(total, magnitude, max_bytes)


@dataclass
class Lookup(PerSample):
    r"""Gradients of an embedding table: :math:`\delta_{nt}` added to row ``index[n, t]``.

    ``delta`` is ``(N, T, D)``; positions that hold the padding index carry a zero.
    """

    delta: Tensor
    index: Tensor
    shape: torch.Size

    def __post_init__(self) -> None:
        self.samples = self.delta.shape[0]

    def rows(self, start: int, stop: int) -> Tensor:
        """See :class:`PerSample`."""
        n = stop - start
        flat = self.delta.new_zeros(n * self.shape[0], self.shape[1])
        offset = torch.arange(n, device=self.index.device).unsqueeze(1) * self.shape[0]
        where = (self.index[start:stop] + offset).flatten()
        return flat.index_add_(0, where, self.delta[start:stop].flatten(0, 1)).view(n, *self.shape)

    def add_to(self, total: Tensor, magnitude: Magnitude, max_bytes: int) -> None:
        """See :class:`PerSample`."""
        # Only rows that a sample looked up are non-zero: sum within each (sample, row), then square.
        offset = torch.arange(self.samples, device=self.index.device).unsqueeze(1) * self.shape[0]
        key, slot = torch.unique((self.index + offset).flatten(), return_inverse=True)
        rows = self.delta.new_zeros(len(key), self.shape[1])
        rows.index_add_(0, slot, self.delta.flatten(0, 1))
        total.index_add_(0, key % self.shape[0], magnitude(rows).to(total.dtype))
