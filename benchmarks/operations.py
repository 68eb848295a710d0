"""Each operation of the rules compiled on its own: what their one pass over memory is measured against."""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from cl_callbacks.compiled import fused
from cl_callbacks.compiled.kernels import FusedCall, _do
from cl_callbacks.synapses import step_plan

ALL = 2**62


@contextmanager
def each_operation_compiled() -> Iterator[None]:
    """Within, ``CompileRules`` compiles each operation by a plain ``torch.compile`` and runs it at once.

    An operation is one compiled function for all weights, since blocks would each have their own to compile.
    """
    with mock.patch.object(fused, "_Tape", AtOnce), mock.patch.object(step_plan, "ELEMENTS_IF_COMPILED", ALL):
        yield


class AtOnce:
    """In the place of the tape, which collects operations until they can run as one kernel."""

    _compiled: dict[Hashable, Callable[..., None]] = {}  # noqa: RUF012, of all of them

    def __init__(self) -> None:
        self.calls = self

    def __enter__(self) -> None:
        """Nothing has to be watched."""

    def __exit__(self, *exception: object) -> None:
        """Nothing is left."""

    def run(self) -> None:
        """Everything has run."""

    def append(self, call: FusedCall) -> None:
        lists = call.tensors()
        about = tuple(tuple((t.shape, t.stride(), t.dtype, t.device) for t in some) for some in lists)
        key = (call.kind, about)
        if key not in self._compiled:
            self._compiled[key] = torch.compile(_program(call), fullgraph=True, dynamic=False)
        outer, fused._here.tape = fused._here.tape, None
        try:
            self._compiled[key](*lists)
        finally:
            fused._here.tape = outer


def _program(call: FusedCall) -> Callable[..., None]:
    operation, layout = call.operation, call.layout

    def program(*lists: Any) -> None:
        _do(operation, layout, lists)

    # A copy of the code for each, since torch.compile makes only a few kernels for the same code.
    return types.FunctionType(program.__code__.replace(), globals(), closure=program.__closure__)
