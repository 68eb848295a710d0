"""State that lives elsewhere than beside the parameters, and comes to them while a rule works on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Offload:
    """Brings state from where it lives to the parameters, and takes it back when they have changed it.

    A field is copied when a rule asks for it, and copied back when the rule is done, if it did what may have
    changed it. From and to pinned memory of the CPU, copies are queued behind the work of the current stream:
    the host does not wait for them. The accelerator does, for they are not overlapped with its own work. What
    the host itself reads or writes of the state comes after :meth:`flush`.

    Args:
        device: where the state lives.

    Example:
        >>> offload, weight = Offload(torch.device("cpu")), torch.ones(2)
        >>> kept = offload.store(torch.zeros(2), weight)
        >>> with offload.on_device():
        ...     (field,) = offload.load([kept], [weight])
        ...     _ = field.add_(weight)
        >>> kept
        tensor([1., 1.])
    """

    _everywhere = False  # tests have state travel also where it already is

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Copies at hand, and whether they may be changed: one entry for each `on_device` that is under way.
        self._out: list[tuple[bool, dict[Tensor, Tensor]]] = []
        self._busy: set[torch.device] = set()  # devices that may still be copying

    def is_elsewhere(self, parameter: Tensor) -> bool:
        """Whether a parameter's state lives on another device than the parameter."""
        if self.device.type == parameter.device.type and self.device.index is None:
            return self._everywhere  # "cuda" is whichever of them the parameter is on
        return self._everywhere or self.device != parameter.device

    def device_of(self, parameter: Tensor) -> torch.device:
        """Where a parameter's state lives."""
        return self.device if self.is_elsewhere(parameter) else parameter.device

    def store(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """A tensor of a parameter's state where it lives, pinned if that is the CPU and CUDA is there."""
        tensor = tensor.to(self.device_of(parameter))
        pinning = tensor.device.type == "cpu" and self.is_elsewhere(parameter) and torch.cuda.is_available()
        return tensor.pin_memory() if pinning and not tensor.is_pinned() else tensor

    def load(self, kept: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
        """State beside its parameters: within :meth:`on_device` to be changed, otherwise only to be read."""
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
        """State beside its parameter, to be read and let go."""
        if not self.is_elsewhere(parameter):
            return kept
        cuda = parameter.device.type == "cuda"
        if cuda:
            self._busy.add(parameter.device)
        return kept.to(parameter.device, copy=True, non_blocking=cuda)

    @contextmanager
    def on_device(self, changing: bool = True) -> Iterator[None]:
        """Within, what was brought stays, and is taken back at the end if it is there to be changed in place.

        May be nested; whole fields are not to be at hand when a part of them is changed within. After an
        exception nothing is taken back, and the state is as it was.
        """
        self._out.append((changing, {}))
        try:
            yield
            self._take_back(*self._out[-1])
        finally:
            self._out.pop()

    def flush(self) -> None:
        """Has the state be up to date where it lives, and nobody be copying it."""
        for changing, copies in self._out:
            self._take_back(changing, copies)
        for device in self._busy:
            torch.cuda.synchronize(device)
        self._busy.clear()

    @torch.no_grad()
    def _take_back(self, changing: bool, copies: dict[Tensor, Tensor]) -> None:
        for kept, copy in copies.items() if changing else ():
            kept.copy_(copy, non_blocking=copy.device.type == "cuda")
