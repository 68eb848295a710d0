"""Stores per-synapse state on another device, and copies it to the parameters while a rule works on it."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cl_callbacks.synapses.copy_streams import CopyStreams, copy_streams, on_stream
from cl_callbacks.synapses.visit import Load, Visit, by_device

BLOCK_ELEMENTS = 2**23
"""Elements in a block of parameters whose state is copied while others are worked on: 32 MiB of each float32
field. A bus takes a millisecond for it, a hundred times as long as it takes to start a copy."""


@dataclass
class _Open:
    """An active :meth:`Offload.on_device`, with the copies that were asked for and others made before."""

    changing: bool = False
    visit: Visit | None = None
    asked: dict[Tensor, Tensor] = field(default_factory=dict)
    ahead: dict[Tensor, Tensor] = field(default_factory=dict)
    has_arrived: bool = False


class Offload:
    """Copies state from its storage device to its parameters, and back after a rule has changed it.

    A field is copied when a rule asks for it, and copied back when the rule is done, if the rule may have
    changed it. The host waits for no copy from or to the pinned memory of the CPU, and so may read or write
    the stored state only after :meth:`flush`.

    Where a rule works in each step, at a :class:`~cl_callbacks.synapses.visit.Visit`, copies run on streams
    of their own: while it works on one block of the parameters, the state of the next is copied to the device
    and that of the one before is copied back. No more than two blocks are on the device, and none between the
    steps. Everywhere else, and on devices without streams, copies run between the computations.

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
        self._open: list[_Open] = []
        self._last: Visit | None = None
        self._ahead: dict[Tensor, Tensor] = {}  # copies for the visit after the last one
        self._ready: dict[torch.device, torch.Event] = {}  # when they are complete
        self._busy: set[torch.device] = set()  # devices that may still be copying

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a rule has no copies of state under way."""
        return type(self), (self.device,)

    def is_elsewhere(self, parameter: Tensor) -> bool:
        """Whether a parameter's state is stored on another device than the parameter."""
        if self.device.type == parameter.device.type and self.device.index is None:
            return self._everywhere  # "cuda" is whichever of them the parameter is on
        return self._everywhere or self.device != parameter.device

    def device_of(self, parameter: Tensor) -> torch.device:
        """The device on which a parameter's state is stored."""
        return self.device if self.is_elsewhere(parameter) else parameter.device

    def block_elements(self, parameters: Iterable[Tensor]) -> int | None:
        """Elements in a block of parameters, if copies of their state can overlap with computations."""
        return BLOCK_ELEMENTS if any(self._streams(p.device) is not None for p in parameters) else None

    def store(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """Moves a tensor of state to its storage device; pinned if that is the CPU of an accelerator."""
        tensor = tensor.to(self.device_of(parameter))
        pinning = self._streams(parameter.device) is not None and not tensor.is_pinned()
        return tensor.pin_memory() if pinning else tensor

    def load(self, kept: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
        """Copies state to its parameters' devices; copies and their changes last within :meth:`on_device`."""
        known = ChainMap(*(opened.asked for opened in reversed(self._open)))  # new ones go to the innermost
        away = [(t, p.device) for t, p in zip(kept, parameters, strict=True) if self.is_elsewhere(p)]
        missing = [(t, device) for t, device in away if t not in known]
        if missing:
            known.update(self._load(missing, self._open[-1] if self._open else _Open()))
        return [known.get(t, t) for t in kept]

    def load_once(self, kept: Tensor, parameter: Tensor) -> Tensor:
        """Copies a tensor to its parameter's device, for reading; of those that are never written back."""
        return self._copy(kept, parameter.device) if self.is_elsewhere(parameter) else kept

    @contextmanager
    def on_device(self, changing: bool = True, visit: Visit | None = None) -> Iterator[None]:
        """Within, loaded copies are kept; at the end they are written back, if ``changing``.

        May be nested, but a part of a field must not be changed within while the whole field is loaded. After
        an exception nothing is written back, and the state is as it was.
        """
        opened = _Open(changing, visit)
        self._open.append(opened)
        try:
            yield
            self._remember(opened)
            self._write_back(opened)
        finally:
            self._open.pop()
            self._release(opened)

    def begin_step(self) -> None:
        """Begins a step, before which nothing is copied: state takes no memory while the network computes."""
        self._last = None
        self._drop_ahead()

    def flush(self) -> None:
        """Writes changed copies back to the stored state, and waits until all copies are done."""
        for opened in self._open:
            self._write_back(opened)
        self.begin_step()
        for device in self._busy:
            torch.accelerator.synchronize(device)
        self._busy.clear()

    def _streams(self, device: torch.device) -> CopyStreams | None:
        """The streams of copies between pinned memory and a device, if there are any."""
        return copy_streams(device) if self.device.type == "cpu" else None

    def _copy(self, kept: Tensor, device: torch.device) -> Tensor:
        waits = self._streams(device) is None
        if not waits:
            self._busy.add(device)
        return kept.to(device, copy=True, non_blocking=not waits)

    def _load(self, missing: list[Load], opened: _Open) -> dict[Tensor, Tensor]:
        """Takes the copies that were made ahead, and makes others, then those of the next visit."""
        visit = None if opened.has_arrived else opened.visit
        if visit is not None:
            self._arrive(opened, visit)
        found = {t: opened.ahead[t] for t, _ in missing if t in opened.ahead}
        for device, tensors in by_device(load for load in missing if load[0] not in found).items():
            streams = self._streams(device)
            if streams is not None:
                streams.computing().wait_stream(streams.outward)
            found |= {t: self._copy(t, device) for t in tensors}
        if visit is not None:
            self._look_ahead(visit)
        return found

    def _arrive(self, opened: _Open, visit: Visit) -> None:
        opened.has_arrived, opened.ahead = True, self._ahead
        for device, event in self._ready.items():
            torch.accelerator.current_stream(device).wait_event(event)
        if self._last is not None:
            self._last.next = visit
        self._last, self._ahead, self._ready = visit, {}, {}

    def _look_ahead(self, visit: Visit) -> None:
        for device, tensors in by_device(visit.ahead()).items():
            streams = self._streams(device)
            if streams is not None:
                with on_stream(streams.inward):
                    self._ahead |= {t: self._copy(t, device) for t in tensors}
                self._ready[device] = streams.inward.record_event()

    def _drop_ahead(self) -> None:
        for device in self._ready:
            streams = self._streams(device)
            if streams is not None:  # else the state could be written while it is read
                streams.outward.wait_stream(streams.inward)
        self._ahead, self._ready = {}, {}

    def _remember(self, opened: _Open) -> None:
        visit = opened.visit
        if visit is not None and [id(t) for t, _ in visit.asked] != [id(t) for t in opened.asked]:
            visit.asked = [(t, copy.device) for t, copy in opened.asked.items()]
            self._drop_ahead()  # some of it may be of the same memory

    def _write_back(self, opened: _Open) -> None:
        if not opened.changing:
            return
        changed = {kept: copy.detach() for kept, copy in opened.asked.items()}
        for device, tensors in by_device((kept, copy.device) for kept, copy in changed.items()).items():
            streams = self._streams(device)
            if streams is None:
                for kept in tensors:
                    kept.copy_(changed[kept])
                continue
            self._busy.add(device)
            stream = streams.computing() if opened.visit is None else streams.outward
            stream.wait_stream(streams.inward if opened.visit is None else streams.computing())
            with on_stream(stream):
                for kept in tensors:
                    kept.copy_(changed[kept], non_blocking=True)
                    if kept not in opened.ahead:  # it is memory of the stream that computes
                        changed[kept].record_stream(stream)
            streams.inward.wait_stream(stream)
            if opened.visit is None:
                self._drop_ahead()  # it may have been changed

    def _release(self, opened: _Open) -> None:
        """Lets copies ahead take the memory of those that the computation is done with."""
        for device in {copy.device for copy in opened.ahead.values()}:
            streams = self._streams(device)
            if streams is not None:
                streams.inward.wait_stream(streams.computing())
