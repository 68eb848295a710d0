"""What Ctrl-C must not leave half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within, an interrupt (SIGINT) waits until the end.

    Only the main thread is interrupted, and only there can it be put off. A handler that does not come from
    Python stays in force.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[Any] = []
    signal.signal(signal.SIGINT, lambda *seen: pending.append(seen))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pending:
            signal.raise_signal(signal.SIGINT)
