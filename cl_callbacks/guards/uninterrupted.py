"""Protection of critical sections from Ctrl-C and other signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cl_callbacks.guards.waiting_signals import Section


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Context that delays an interrupt (SIGINT) until its end, and other signals as a ``Section`` does.

    Python interrupts only the main thread, and only there can an interrupt be delayed. A signal handler that
    was not installed from Python stays active.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[Any] = []
    signal.signal(signal.SIGINT, lambda *seen: pending.append(seen))
    try:
        with Section():
            yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pending:
            signal.raise_signal(signal.SIGINT)
