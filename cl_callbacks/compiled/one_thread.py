"""What ``torch.compile`` sets for the whole process, kept to the thread that needs it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakSet

import torch


class _Pass:
    """Stands for one :func:`eagerly` that is running; gone with it, even if its end is interrupted."""


class _Thread(threading.local):
    """The passes of each thread."""

    def __init__(self) -> None:
        self.passes: WeakSet[_Pass] = WeakSet()


_here = _Thread()
_everywhere: WeakSet[_Pass] = WeakSet()
_LOCK = threading.RLock()


class _StanceOfThread:
    """A stance of ``torch.compile``: eager in threads that run a pass, and in others what it was before."""

    def __init__(self, before: Any) -> None:
        self.before = before

    @property
    def stance(self) -> str:
        return "force_eager" if _here.passes else self.before.stance

    def __getattr__(self, name: str) -> Any:
        return getattr(self.before, name)


@contextmanager
def eagerly() -> Iterator[None]:
    """Within, what was compiled runs eagerly, and nothing is compiled anew, in this thread alone.

    ``torch.compiler.set_stance`` sets that for the whole process: kernels that another thread runs
    meanwhile would give other roundings, and of two threads the second would end by setting what the first
    has set.

    Example:
        >>> double = torch.compile(lambda x: 2 * x, backend=lambda graph, inputs: print("compiled") or graph)
        >>> with eagerly():
        ...     double(torch.ones(1))
        tensor([2.])
        >>> double(torch.ones(1))
        compiled
        tensor([2.])
    """
    from torch._dynamo import eval_frame  # takes a second to import

    if not hasattr(eval_frame, "_stance"):  # a torch that keeps it elsewhere: then in all threads
        with torch.compiler.set_stance("force_eager"):
            yield
        return
    this = _Pass()
    with _LOCK:
        if not isinstance(eval_frame._stance, _StanceOfThread):
            eval_frame._stance = _StanceOfThread(eval_frame._stance)  # type: ignore[assignment]
        _everywhere.add(this)
    _here.passes.add(this)
    try:
        yield
    finally:
        _here.passes.discard(this)
        with _LOCK:
            _everywhere.discard(this)
            # Unless somebody has set another one since.
            if not _everywhere and isinstance(eval_frame._stance, _StanceOfThread):
                eval_frame._stance = eval_frame._stance.before


@contextmanager
def unnoticed_by_others() -> Iterator[None]:
    """Within, what this thread compiles does not make ``torch.compiler.is_compiling()`` true in others.

    Torch's optimizers round differently then, whichever thread compiles. One thread at a time may use this.
    """
    session = getattr(torch.compiler, "_compile_session_context", None)
    if session is None:  # an older torch, in which it is true only in what is compiled
        yield
        return
    this = threading.get_ident()

    def of_others(*args: Any) -> Any:
        return nullcontext() if threading.get_ident() == this else session(*args)

    torch.compiler._compile_session_context = of_others
    try:
        yield
    finally:
        torch.compiler._compile_session_context = session
