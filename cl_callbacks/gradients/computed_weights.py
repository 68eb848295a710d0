"""Tensors that a forward computes and leaves on its module, such as the weight of a pruned layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def computed_weights_kept(module: nn.Module) -> Iterator[None]:
    """Restores them afterwards: those of a forward under ``vmap`` are of no use outside of it.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> layer.last = layer.weight * 2
        >>> with computed_weights_kept(layer):
        ...     layer.last = None
        >>> layer.last.shape
        torch.Size([1, 2])
    """
    kept = [
        (inner, name, value)
        for inner in module.modules()
        for name, value in vars(inner).items()
        if isinstance(value, Tensor)
    ]
    try:
        yield
    finally:
        for inner, name, value in kept:
            setattr(inner, name, value)
