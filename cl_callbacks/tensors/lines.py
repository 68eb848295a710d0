"""Some rows or columns of tensors, of which every process may hold a shard."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cl_callbacks.tensors.shards import first_row, held, is_sharded


@dataclass(frozen=True)
class Lines:
    """Rows or columns, to be set in several tensors of one layout.

    Of a tensor that is sharded by rows each process sets those that it holds. Which these are is never asked
    of the device, so that the host does not wait.

    Attributes:
        dim: 0 for rows, 1 for columns.
        index: of the rows or columns, ``(n,)``, each once.

    Example:
        >>> weight = torch.ones(2, 3)
        >>> Lines(1, torch.tensor([0, 2])).fill_(weight, 0.0)
        >>> weight
        tensor([[0., 1., 0.],
                [0., 1., 0.]])
    """

    dim: int
    index: Tensor

    def fill_(self, tensor: Tensor, value: float) -> None:
        """Sets all elements of the lines to a value."""
        own = held(tensor)
        if self._is_apart(tensor):
            own.masked_fill_(self._here(tensor), value)
        else:
            own.index_fill_(self.dim, self.index.to(own.device), value)

    def set_(self, tensor: Tensor, new: Tensor) -> None:
        """Sets the lines to new ones: whole rows, ``(n, ...)``, or columns of the rows that are here."""
        own = held(tensor)
        new = new.to(own, non_blocking=True)
        if self._is_apart(tensor):
            rows = new.index_select(0, self._places(tensor).clamp(min=0))
            own.copy_(torch.where(self._here(tensor), rows, own))
        else:
            own.index_copy_(self.dim, self.index.to(own.device), new)

    def copy_(self, tensor: Tensor, source: Tensor) -> None:
        """Sets the lines to those of another tensor of the same layout."""
        own, other = held(tensor), held(source)
        if self._is_apart(tensor):
            own.copy_(torch.where(self._here(tensor), other.to(own), own))
        else:
            new = other.index_select(self.dim, self.index.to(other.device))
            own.index_copy_(self.dim, self.index.to(own.device), new.to(own))

    def _is_apart(self, tensor: Tensor) -> bool:
        return self.dim == 0 and is_sharded(tensor)

    def _places(self, tensor: Tensor) -> Tensor:
        """For each row that this process holds its place in the index; -1 for the others."""
        device = held(tensor).device
        index = self.index.to(device)
        places = torch.full((len(tensor),), -1, device=device)
        places.index_copy_(0, index, torch.arange(len(index), device=device))
        return places.narrow(0, first_row(tensor), len(held(tensor)))

    def _here(self, tensor: Tensor) -> Tensor:
        return (self._places(tensor) >= 0).view(-1, *[1] * (tensor.ndim - 1))
