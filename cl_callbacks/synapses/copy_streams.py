"""Streams of an accelerator on which state is copied while its own stream computes."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from cl_callbacks.compiled.fused import run_deferred

_LOCK = threading.Lock()


@dataclass(frozen=True)
class CopyStreams:
    """Two streams of a device, on which state is copied: a bus carries both directions at once."""

    device: torch.device
    inward: torch.Stream
    """To the device. It waits for every copy in the other direction, and so reads what that has written."""
    outward: torch.Stream
    """From the device to the host."""

    def computing(self) -> torch.Stream:
        """The device's current stream, with all that was called so far; CompileRules may have deferred it."""
        run_deferred()
        return torch.accelerator.current_stream(self.device)


def copy_streams(device: torch.device) -> CopyStreams | None:
    """The copy streams of a device, which all rules share; ``None`` if it has none, as a CPU.

    Example:
        >>> copy_streams(torch.device("cpu")) is None
        True
    """
    with _LOCK:  # or two threads that ask for the first time would each make some
        return _copy_streams(device)


@functools.cache
def _copy_streams(device: torch.device) -> CopyStreams | None:
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or device.type != accelerator.type or device.type == "mps":
        return None  # MPS has one stream, and no memory of its own
    return CopyStreams(device, torch.Stream(device), torch.Stream(device))


@contextmanager
def on_stream(stream: torch.Stream) -> Iterator[None]:
    """Within, operations are queued on a stream; those that ``CompileRules`` has deferred run before."""
    run_deferred()
    # Setting a stream also makes its device the current one: what was current on both is restored.
    outside, before = torch.accelerator.current_stream(), torch.accelerator.current_stream(stream.device)
    torch.accelerator.set_stream(stream)
    try:
        yield
    finally:
        torch.accelerator.set_stream(before)
        torch.accelerator.set_stream(outside)
