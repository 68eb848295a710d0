"""Averages BatchNorm's running statistics over tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from cl_callbacks.synapses.state import plain_name


class BatchStatistics:
    """Running mean and variance of each normalising layer after the last task, and after how many it has had.

    They are small, and stay beside the layers.
    """

    def __init__(self) -> None:
        self._old: dict[str, Tensor] = {}
        self._tasks: dict[str, int] = {}

    def begin(self, module: nn.Module, wanted: Callable[[str], bool]) -> None:
        """Counts the present statistics as those after a first task."""
        self.merge(module, wanted, None)

    @torch.no_grad()
    def merge(self, module: nn.Module, wanted: Callable[[str], bool], old_share: float | None) -> None:
        """Averages the present statistics with those after the tasks before, in place.

        Args:
            module: the network.
            wanted: whether statistics of a name, such as ``"net.1.running_mean"``, are averaged.
            old_share: share of the old ones; ``None`` for the mean over tasks.
        """
        for name, present in statistics(module):
            if not wanted(name):
                continue
            old, tasks = self._old.get(name), self._tasks.get(name, 0)
            if old is not None and old.shape == present.shape:
                share = tasks / (tasks + 1) if old_share is None else old_share
                present.lerp_(old.to(present), share)
            self._old[name], self._tasks[name] = present.clone(), tasks + 1

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only."""
        return {"old": dict(self._old), "tasks": dict(self._tasks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._old = {name: t.detach().clone() for name, t in state["old"].items()}
        self._tasks = dict(state["tasks"])


def statistics(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the running means and variances of a module's normalising layers.

    Example:
        >>> [name for name, _ in statistics(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))]
        ['1.running_mean', '1.running_var']
    """
    for path, layer in module.named_modules():
        if isinstance(layer, _NormBase) and layer.running_mean is not None:
            for name in ("running_mean", "running_var"):
                yield plain_name(f"{path}.{name}"), getattr(layer, name)
