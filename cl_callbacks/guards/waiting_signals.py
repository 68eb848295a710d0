"""Signals whose handlers wait until what must not be divided is done, such as a step or the end of a task.

A handler may save: Lightning writes the checkpoint of a SLURM job that is preempted in one.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_AT_ONCE = {"SIGINT", "SIGCHLD", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGKILL", "SIGSTOP"}
"""Ctrl-C, for which everything is restored on the way out; loaders whose workers die; limits of time."""
_SIGNALS = [number for number in signal.valid_signals() if getattr(number, "name", "") not in _AT_ONCE]

_sections: set[int] = set()  # those that are open, by id()
_waiting: dict[int, None] = {}  # signals that came in one, in their order

if hasattr(os, "register_at_fork"):  # a process that begins within a section has none of its own
    os.register_at_fork(after_in_child=_sections.clear)
    os.register_at_fork(after_in_child=_waiting.clear)


class Gate:
    """A signal's handler in the place of another one, which it calls: at once, or after all sections."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: Any) -> None:
        """Calls the handler, or notes that it is to be called."""
        if _sections:
            _waiting[number] = None
        else:
            self.handler(number, frame)


class Section:
    """While it is open, handlers of signals wait: all that are written in Python, except that of Ctrl-C.

    Opening and closing costs next to nothing, and either may be repeated; or it is a context. Handlers that
    were installed after the last :func:`guard_signals` do not wait. Python calls handlers in the main thread
    only, and sections of other threads do nothing.

    Example:
        >>> before = signal.signal(signal.SIGUSR1, lambda number, frame: print("saved"))
        >>> gated, section = guard_signals(), Section()
        >>> section.open(); signal.raise_signal(signal.SIGUSR1); print("the step is over"); section.close()
        the step is over
        saved
        >>> release_signals(gated); _ = signal.signal(signal.SIGUSR1, before)
    """

    def __enter__(self) -> Section:
        self.open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def open(self) -> None:
        """Lets handlers wait."""
        if threading.current_thread() is threading.main_thread():
            _sections.add(id(self))

    def close(self) -> None:
        """Calls the handlers that wait, unless another section is open."""
        _sections.discard(id(self))
        if threading.current_thread() is not threading.main_thread():
            return
        while _waiting and not _sections:
            number = next(iter(_waiting))
            del _waiting[number]
            signal.raise_signal(number)


@contextmanager
def signals_wait() -> Iterator[None]:
    """A context as a :class:`Section`, in which also handlers wait that were installed just before."""
    gated = guard_signals()
    try:
        with Section():
            yield
    finally:
        release_signals(gated)


def guard_signals() -> list[int]:
    """Lets the present handlers take part in sections; returns the signals whose handlers did not before."""
    if threading.current_thread() is not threading.main_thread():
        return []
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    new = {
        n: handler for n, handler in handlers.items() if callable(handler) and not isinstance(handler, Gate)
    }
    for number, handler in new.items():
        signal.signal(number, Gate(handler))
    return list(new)


def release_signals(numbers: list[int]) -> None:
    """Undoes :func:`guard_signals` for some signals, but where somebody has changed the handler since."""
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            handler = signal.getsignal(number)
            if isinstance(handler, Gate):
                signal.signal(number, handler.handler)
