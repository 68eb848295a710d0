"""Records the module calls of a forward pass, and computes the cotangents of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from cl_callbacks.tensors.batches import finite_samples, flat_tensors, map_tensors, take_samples


class RecordedCall(NamedTuple):
    """One call of a module: its inputs, and the edges of its outputs in the autograd graph."""

    module: nn.Module
    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    # Edges of the outputs as returned, since in-place activations may overwrite the tensors.
    edges: list[GradientEdge | None]


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
        edges = [get_gradient_edge(t) if t.requires_grad else None for t in flat_tensors(outputs)]
        if any(edges):
            detached: dict[int, Tensor] = {}  # one for each tensor: identity of query and key is kept
            inputs = map_tensors(lambda t: detached.setdefault(id(t), t.detach()), (args, kwargs))
            calls.append(RecordedCall(module, inputs, edges))

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class Pass(NamedTuple):
    """Batch, outputs, labels and module calls of one forward pass."""

    batch: Any
    outputs: Tensor
    labels: Tensor | None
    calls: list[RecordedCall]


def finite_pass(
    modules: Collection[nn.Module], forward: Callable[[Any], tuple[Tensor, Tensor | None]], batch: Any
) -> Pass:
    """Runs a batch without the samples whose outputs are not finite, possibly all of them.

    Args:
        modules: whose calls are recorded.
        forward: function from a batch to ``(outputs, labels)``; outputs ``(N, ...)``, one row per sample.
        batch: of ``N`` samples.
    """
    with recorded_calls(modules) as calls:
        outputs, labels = forward(batch)
    finite = finite_samples(outputs)
    if finite.all():
        return Pass(batch, outputs, labels, calls)
    if not finite.any():
        return Pass(batch, outputs[:0], labels, [])
    return finite_pass(modules, forward, take_samples(batch, finite.nonzero().squeeze(1)))


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
    found = iter(torch.autograd.grad(outputs, edges, vector, retain_graph=True, allow_unused=True))
    return [[None if edge is None else next(found) for edge in call.edges] for call in calls]
