"""Counts the bytes of all tensors that torch makes, and the most of them that lived at a time."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Within, ``peak`` is the most bytes at a time since :meth:`restart`, beyond those there were then."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.base = self.most = 0
        self.seen: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()

    @property
    def peak(self) -> int:
        return self.most - self.base

    def restart(self) -> None:
        self.base = self.most = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage not in self.seen:
                    self.seen[storage] = None
                    size = storage.nbytes()
                    self.live += size
                    self.most = max(self.most, self.live)
                    weakref.finalize(storage, self._gone, size)
        return out

    def _gone(self, size: int) -> None:
        self.live -= size
