"""Layers that were not run when units were looked for, and are later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from typing import Any

from torch import nn

from cl_callbacks.rules.renewal.module_parts import LAYERS
from cl_callbacks.synapses.state import plain_name
from cl_callbacks.training.quiet import leaves_no_trace

ATTEMPTS = 5
"""How often units are looked for on account of one layer, which may be run by chance."""


class LateLayers:
    """Notes layers that run in training although no search has run them: they may read units, too.

    Args:
        module: with the layers.

    Attributes:
        heard: names of those that have run since they were last looked for.

    Example:
        >>> import torch
        >>> net = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
        >>> late = LateLayers(net)
        >>> late.wait_for_others({"0"})
        []
        >>> _ = net[1](torch.ones(1))
        >>> late.heard
        {'1'}
        >>> late.detach()
    """

    def __init__(self, module: nn.Module) -> None:
        self.heard: set[str] = set()
        self._attempts: Counter[str] = Counter()
        self._layers = {plain_name(n): m for n, m in module.named_modules() if isinstance(m, LAYERS)}
        self._handles: list[Any] = []

    @property
    def waiting(self) -> bool:
        """Whether there are layers that no search has met."""
        return bool(self._handles)

    def wait_for_others(self, known: Container[str]) -> list[str]:
        """Waits for the layers that are not known.

        Returns:
            Names of those that it gives up: :data:`ATTEMPTS` searches have not met them.
        """
        self.detach()
        self._attempts.update(self.heard)
        late = [name for name in self._layers if name not in known]
        given_up = [name for name in sorted(self.heard) if name in late and self._attempts[name] == ATTEMPTS]
        self.heard = set()
        for name in late:
            if self._attempts[name] < ATTEMPTS:
                hook = self._hearing(name)
                self._handles.append(self._layers[name].register_forward_pre_hook(hook))
        return given_up

    def detach(self) -> None:
        """Waits no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hearing(self, name: str) -> Any:
        def hear(layer: nn.Module, args: tuple[Any, ...]) -> None:
            if layer.training and not leaves_no_trace():
                self.heard.add(name)

        return hear
