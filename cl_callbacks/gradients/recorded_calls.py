"""Records the module calls of a forward pass, and computes the cotangents of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from cl_callbacks.gradients.precision import Precision
from cl_callbacks.gradients.sample_slices import SampleSlices
from cl_callbacks.tensors.batches import finite_samples
from cl_callbacks.tensors.containers import flat_tensors, map_tensors


class RecordedCall(NamedTuple):
    """One call of a module: its inputs, the edges of its outputs in the autograd graph, its precision."""

    module: nn.Module
    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    # Edges of the outputs as returned, since in-place activations may overwrite the tensors.
    edges: list[GradientEdge | None]
    precision: Precision


@contextmanager
def recorded_calls(modules: Iterable[nn.Module]) -> Iterator[list[RecordedCall]]:
    """Records every call of the modules whose outputs require a gradient.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> with recorded_calls([layer]) as calls:
        ...     outputs = layer(torch.ones(3, 2)).square()
        >>> [deltas] = output_cotangents(outputs, calls, torch.ones(3, 1))
        >>> deltas[0].shape
        torch.Size([3, 1])
    """
    calls: list[RecordedCall] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        found = flat_tensors(outputs)
        edges = [get_gradient_edge(t) if t.requires_grad else None for t in found]
        if any(edges):
            detached: dict[int, Tensor] = {}  # one for each tensor: identity of query and key is kept
            inputs = map_tensors(lambda t: detached.setdefault(id(t), t.detach()), (args, kwargs))
            calls.append(RecordedCall(module, inputs, edges, Precision.now(found[0].device.type)))

    # Before the user's own hooks, which may put something else in the place of a layer's outputs.
    handles = [module.register_forward_hook(record, with_kwargs=True, prepend=True) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class Pass(NamedTuple):
    """One forward pass: its batch, outputs, labels and module calls."""

    batch: Any
    outputs: Tensor
    labels: Tensor | None
    calls: list[RecordedCall]
    samples: int
    """Number of rows that are measured, from the first one."""
    rows: int
    """Number of rows that were to be measured, including those that are not finite."""


def finite_pass(
    modules: Collection[nn.Module],
    forward: Callable[[Any], tuple[Tensor, Tensor | None]],
    slices: SampleSlices,
    batch: Any,
    most: int | None = None,
) -> Pass:
    """Runs a batch without the samples whose outputs are not finite, or none of it if they cannot be cut out.

    Args:
        modules: whose calls are recorded.
        forward: function from a batch to ``(outputs, labels)``; outputs ``(N, ...)``, one row per sample.
        slices: samples cut out of batches.
        batch: of ``N`` samples.
        most: number of samples that are measured, from the first one; default: all.
    """
    with recorded_calls(modules) as calls:
        outputs, labels = forward(batch)
    rows = len(outputs) if most is None else min(most, len(outputs))
    finite = finite_samples(outputs)
    if finite.all():
        return Pass(batch, outputs, labels, calls, rows, rows)
    which = finite[:rows].nonzero().flatten().tolist()
    if not which or slices.alone(batch, which, outputs) is None:
        return Pass(batch, outputs[:0], labels, [], 0, rows)
    part = slices.take(batch, which, len(outputs))
    return finite_pass(modules, forward, slices, part)._replace(rows=rows)


def output_cotangents(
    outputs: Tensor, calls: list[RecordedCall], vector: Tensor
) -> list[list[Tensor | None]]:
    """Cotangents of the outputs of each call when ``vector`` is pulled back from ``outputs``.

    This takes one backward to the modules' outputs, without weight gradients.

    Args:
        outputs: of the network.
        calls: recorded while they were computed.
        vector: of the shape of ``outputs``.

    Returns:
        For each call one tensor per output of the module; ``None`` where it has no influence.
    """
    edges = [edge for call in calls for edge in call.edges if edge is not None]
    if not edges:
        return [[None] * len(call.edges) for call in calls]
    vector = vector.to(outputs.dtype)
    found = iter(torch.autograd.grad(outputs, edges, vector, retain_graph=True, allow_unused=True))
    return [[None if edge is None else next(found) for edge in call.edges] for call in calls]
