"""Operations on lists of tensors that can run as one compiled pass over memory.

An operation written in ``torch._foreach_*`` calls reads and writes its tensors once in each call. Compiled,
it does so once in all. Compiling takes seconds and a C++ compiler (on a GPU, Triton), so it is asked for.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

SMALLEST = 2**14
"""Elements below which a compiled kernel, which is called for each tensor, takes more time than it saves."""

MOST = 256
"""Kernels that are kept."""

_compiled: dict[Hashable, Callable[..., None]] = {}
_on = False


@contextmanager
def compiling(on: bool = True) -> Iterator[None]:
    """Within, operations marked by :func:`fusable` are compiled if ``on``.

    Example:
        >>> with compiling(False):
        ...     is_compiling()
        False
    """
    global _on
    before, _on = _on, on
    try:
        yield
    finally:
        _on = before


def is_compiling() -> bool:
    """Whether fusable operations are compiled at the moment."""
    return _on


def fusable(operation: Callable[..., None]) -> Callable[..., None]:
    """Marks an elementwise operation, in place, on aligned lists of tensors.

    A list of tensors, or of such lists, has one tensor for each parameter; anything else is the same for all
    of them and becomes part of the kernel, so it should not change from step to step.

    Example:
        >>> @fusable
        ... def shrink_(weights, by):
        ...     torch._foreach_mul_(weights, by)
        >>> weights = [torch.ones(2)]
        >>> shrink_(weights, 0.5)
        >>> weights
        [tensor([0.5000, 0.5000])]
    """

    @functools.wraps(operation)
    def call(*args: Any, **kwargs: Any) -> None:
        if not _on:
            operation(*args, **kwargs)
            return
        values = [*args, *kwargs.values()]
        lists = [tensors for value in values for tensors in _lists(value)]

        def run(function: Callable[..., None], which: list[int], flat: bool) -> None:
            picked = [_picked(value, which, flat) for value in values]
            function(*picked[: len(args)], **dict(zip(kwargs, picked[len(args) :], strict=True)))

        constants = repr([value for value in values if not _lists(value)])
        large = [i for i, some in enumerate(zip(*lists, strict=True)) if _is_large(some)]
        for which in _calls(lists[0], large):
            kinds = [(t[i].dtype, t[i].device) for t in lists for i in which[:1]]
            # All lengths have one kernel; where several tensors are in one call, each list of lengths has.
            lengths = [lists[0][i].numel() for i in which] if len(which) > 1 else []
            run(_kernel(operation, (constants, *kinds, *lengths)), which, flat=True)
        small = sorted(set(range(len(lists[0]))) - set(large))
        if small:
            run(operation, small, flat=False)

    return call


def _lists(value: Any) -> list[Sequence[Tensor]]:
    """The aligned lists of tensors in an argument: itself, those within it, or none."""
    if not isinstance(value, list | tuple) or not value:
        return []
    if isinstance(value[0], Tensor):
        return [value]
    return [tensors for inner in value for tensors in _lists(inner)]


def _picked(value: Any, which: list[int], flat: bool) -> Any:
    """An argument for some of the parameters."""
    if not _lists(value):
        return value
    if isinstance(value[0], Tensor):
        return [value[i].view(-1) if flat else value[i] for i in which]
    return [_picked(inner, which, flat) for inner in value]


def _is_large(tensors: Sequence[Tensor]) -> bool:
    return tensors[0].numel() >= SMALLEST and all(t.is_contiguous() for t in tensors)


def _calls(tensors: Sequence[Tensor], which: list[int]) -> list[list[int]]:
    """What goes into one call: on a GPU, which would wait for many, all of a kind; else each alone."""
    if not any(tensors[i].is_cuda for i in which):
        return [[i] for i in which]
    kinds: dict[Any, list[int]] = {}
    for i in which:
        kinds.setdefault((tensors[i].device, tensors[i].dtype), []).append(i)
    return list(kinds.values())


def _kernel(operation: Callable[..., None], kind: tuple[Hashable, ...]) -> Callable[..., None]:
    # A copy of the code for each, since torch.compile makes only a few kernels for the same code.
    key = (operation, *kind)
    if key not in _compiled:
        if len(_compiled) >= MOST:
            _compiled.clear()
        function: Any = operation
        again = types.FunctionType(
            function.__code__.replace(), function.__globals__, None, function.__defaults__, None
        )
        again.__kwdefaults__ = function.__kwdefaults__
        _compiled[key] = torch.compile(again, fullgraph=True, dynamic=True)
    return _compiled[key]
