"""Walks the autograd graph of outputs."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.autograd.graph import Node


def graph_nodes(outputs: Tensor) -> Iterator[Node]:
    """Yields all nodes of the autograd graph that the outputs depend on."""
    seen, waiting = set(), [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting.extend(source for source, _ in node.next_functions)
