"""Operations on lists of tensors that can run as one compiled pass over memory.

An operation written in ``torch._foreach_*`` calls reads and writes its tensors once in each call. Compiled,
it reads and writes them once in all, also together with operations that follow it. Compiling takes seconds
and needs a C++ compiler (on a GPU, Triton), so it is off by default.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cl_callbacks.compiled.kernels import FusedCall, run


class _Thread(threading.local):
    """The active tape of each thread, which is per thread as torch's function modes are."""

    tape: _Tape | None = None


_here = _Thread()


@contextmanager
def compiling(on: bool = True) -> Iterator[None]:
    """Within, operations marked by :func:`fusable` are compiled if ``on``.

    Consecutive ones become one kernel: they are deferred until another operation of torch is called that
    could read their results, or the context ends. Code that reads memory without calling torch, such as
    through a numpy array that shares it, sees the results only then.

    Example:
        >>> with compiling(False):
        ...     is_compiling()
        False
    """
    outer, _here.tape = _here.tape, _Tape() if on else None
    try:
        with _here.tape or nullcontext():
            yield
    finally:
        inner, _here.tape = _here.tape, outer
        if inner is not None:
            inner.run()


def is_compiling() -> bool:
    """Whether fusable operations are currently compiled, in this thread."""
    return _here.tape is not None


def run_deferred() -> None:
    """Runs what is deferred, in this thread, before an operation that torch does not see waits for it."""
    if _here.tape is not None:
        _here.tape.run()


def fusable(operation: Callable[..., None] | None = None, *, numbers: Sequence[str] = ()) -> Any:
    """Decorates an elementwise in-place operation on aligned lists of tensors, so that it can be compiled.

    A list of tensors, or of such lists, has one tensor for each parameter; anything else is the same for all
    of them and becomes part of the kernel, so it should not change from step to step.

    Args:
        operation: the function to decorate.
        numbers: names of arguments that are a number, or one for each parameter, and may change; compiled,
            the operation gets tensors without dimensions instead.

    Example:
        >>> @fusable(numbers=["by"])
        ... def shrink_(weights, by):
        ...     torch._foreach_mul_(weights, by)
        >>> weights = [torch.ones(2)]
        >>> shrink_(weights, [0.5])
        >>> weights
        [tensor([0.5000, 0.5000])]
    """
    if operation is None:
        return functools.partial(fusable, numbers=numbers)
    names = list(inspect.signature(operation).parameters)

    @functools.wraps(operation)
    def call(*args: Any, **kwargs: Any) -> None:
        if torch.compiler.is_dynamo_compiling() or _here.tape is None:
            operation(*args, **kwargs)
        else:
            arguments = dict(zip(names, args, strict=False)) | kwargs
            _here.tape.calls.append(FusedCall(operation, arguments, numbers))

    return call


class _Tape(TorchFunctionMode):
    """Collects fusable operations, and runs them as one kernel before torch could read their results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[FusedCall] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if self.calls and not _reads_nothing(func, args):
            self.run()
        return func(*args, **(kwargs or {}))

    @torch.compiler.disable  # or a compiled function called meanwhile would trace this
    def run(self) -> None:
        """Runs the collected operations; fusable operations called within run at once."""
        outer, _here.tape = _here.tape, None
        calls, self.calls = self.calls, []
        try:
            if calls:
                run(calls)
        finally:
            _here.tape = outer


_ASIDE = {
    torch.empty_like,
    Tensor.view,
    Tensor.numel,
    *(getattr(Tensor, name).__get__ for name in ("grad", "shape", "dtype", "device", "ndim", "is_cuda")),
}


def _reads_nothing(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Whether an operation reads no values of tensors: it makes a view, or reads metadata such as a shape."""
    return func in _ASIDE or (func is Tensor.__getitem__ and isinstance(args[1], slice))
