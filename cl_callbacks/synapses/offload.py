"""Stores per-synapse state on another device, and copies it to the parameters while a rule works on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Offload:
    """Copies state from its storage device to its parameters, and back after a rule has changed it.

    A field is copied when a rule asks for it, and copied back when the rule is done, if the rule may have
    changed it. From and to pinned memory of the CPU, copies are queued on the current stream: the host does
    not wait for them. The accelerator does, because they do not overlap with its own work. The host itself
    may read or write the stored state only after :meth:`flush`.

    Args:
        device: on which the state is stored.

    Example:
        >>> offload, weight = Offload(torch.device("cpu")), torch.ones(2)
        >>> kept = offload.store(torch.zeros(2), weight)
        >>> with offload.on_device():
        ...     (field,) = offload.load([kept], [weight])
        ...     _ = field.add_(weight)
        >>> kept
        tensor([1., 1.])
    """

    _everywhere = False  # set by tests, to copy state also where it already is on the device

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # For each active `on_device`: whether copies may be changed, and the copies by stored tensor.
        self._out: list[tuple[bool, dict[Tensor, Tensor]]] = []
        self._busy: set[torch.device] = set()  # devices that may still be copying

    def is_elsewhere(self, parameter: Tensor) -> bool:
        """Whether a parameter's state is stored on another device than the parameter."""
        if self.device.type == parameter.device.type and self.device.index is None:
            return self._everywhere  # "cuda" is whichever of them the parameter is on
        return self._everywhere or self.device != parameter.device

    def device_of(self, parameter: Tensor) -> torch.device:
        """The device on which a parameter's state is stored."""
        return self.device if self.is_elsewhere(parameter) else parameter.device

    def store(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """Moves a tensor of state to its storage device; pinned if that is the CPU and CUDA is available."""
        tensor = tensor.to(self.device_of(parameter))
        pinning = tensor.device.type == "cpu" and self.is_elsewhere(parameter) and torch.cuda.is_available()
        return tensor.pin_memory() if pinning and not tensor.is_pinned() else tensor

    def load(self, kept: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
        """Copies state to its parameters' devices; changes are kept within :meth:`on_device` only."""
        return [self._load(t, p) for t, p in zip(kept, parameters, strict=True)]

    def _load(self, kept: Tensor, parameter: Tensor) -> Tensor:
        if not self.is_elsewhere(parameter):
            return kept
        for _, copies in self._out:
            if kept in copies:
                return copies[kept]
        copy = self.load_once(kept, parameter)
        if self._out:
            self._out[-1][1][kept] = copy
        return copy

    def load_once(self, kept: Tensor, parameter: Tensor) -> Tensor:
        """Copies state to its parameter's device for reading only; the copy is not kept."""
        if not self.is_elsewhere(parameter):
            return kept
        cuda = parameter.device.type == "cuda"
        if cuda:
            self._busy.add(parameter.device)
        return kept.to(parameter.device, copy=True, non_blocking=cuda)

    @contextmanager
    def on_device(self, changing: bool = True) -> Iterator[None]:
        """Within, loaded copies are kept; at the end they are written back, if ``changing``.

        May be nested, but a part of a field must not be changed within while the whole field is loaded. After
        an exception nothing is written back, and the state is as it was.
        """
        self._out.append((changing, {}))
        try:
            yield
            self._take_back(*self._out[-1])
        finally:
            self._out.pop()

    def flush(self) -> None:
        """Writes changed copies back to the stored state, and waits until all copies are done."""
        for changing, copies in self._out:
            self._take_back(changing, copies)
        for device in self._busy:
            torch.cuda.synchronize(device)
        self._busy.clear()

    @torch.no_grad()
    def _take_back(self, changing: bool, copies: dict[Tensor, Tensor]) -> None:
        for kept, copy in copies.items() if changing else ():
            kept.copy_(copy, non_blocking=copy.device.type == "cuda")
