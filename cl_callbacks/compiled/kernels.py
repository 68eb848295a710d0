"""Compiles consecutive operations on the same tensors into one loop over memory."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from cl_callbacks.compiled.memory_order import in_memory_order, is_dense
from cl_callbacks.compiled.one_thread import unnoticed_by_others

SMALLEST = 2**14
"""Smallest number of elements for which a tensor gets a loop, which takes 0.1 s to compile."""

TOGETHER = 32
"""Number of loops in one kernel, whose call takes as long as a hundred thousand elements."""

MOST = 1024
"""Largest number of kernels, and of routes, that are cached."""

COMPILING = threading.RLock()
"""Held while kernels are compiled: other threads that need the same wait for them, and leave torch's random
numbers alone, which it saves and restores around that."""

Places = Sequence[Sequence[Sequence[int]]]
"""Indices of tensors, by call, aligned list and position in it."""

T = TypeVar("T")
Item = tuple[int, int]
"""Index of a call, and a position in its lists."""


class FusedCall:
    """A deferred call of an operation.

    Args:
        operation: elementwise and in place.
        arguments: by name. Lists of tensors, and lists of such lists, are aligned: the operation acts on the
            first tensors of all of them, on the second, and so on. Any other argument becomes a constant of
            the kernel.
        numbers: names of arguments that are a number or an aligned list of numbers, which a kernel takes as
            tensors without dimensions, so that they may change.
    """

    def __init__(
        self, operation: Callable[..., None], arguments: Mapping[str, Any], numbers: Iterable[str] = ()
    ) -> None:
        self.operation = operation
        self.lists: list[Sequence[Any]] = []
        given = {name: arguments[name] for name in numbers if arguments.get(name) is not None}
        self.layout = {n: _taken_out(v, self.lists) for n, v in arguments.items() if n not in given}
        self.length = len(self.lists[0])
        for name, value in given.items():
            self.layout[name] = _Place(len(self.lists))
            self.lists.append(list(value) if isinstance(value, list | tuple) else [value] * self.length)
        self.kind = (operation, repr(self.layout))

    def do(self, which: Iterable[int]) -> None:
        """Runs the operation on the tensors at some positions of the lists."""
        _do(self.operation, self.layout, [[some[i] for i in which] for some in self.lists])

    def tensors(self) -> list[Sequence[Tensor]]:
        """All aligned lists of the call, with numbers converted to tensors."""
        return [some if isinstance(some[0], Tensor) else self._scalars(some) for some in self.lists]

    def _scalars(self, numbers: Sequence[float]) -> Sequence[Tensor]:
        devices, kept = [t.device for t in self.lists[0]], torch.tensor(numbers, dtype=torch.float64)
        on = {device: kept.to(device, non_blocking=True).unbind() for device in dict.fromkeys(devices)}
        return [on[device][i] for i, device in enumerate(devices)]


def run(calls: Sequence[FusedCall]) -> None:
    """Runs calls in order, with one compiled loop for all operations on the same large tensors."""
    lists = [call.tensors() for call in calls]
    place_of: dict[int, int] = {}
    found: dict[tuple[Hashable, ...], int] = {}
    tensors: list[Tensor] = []
    for t in (t for of_call in lists for some in of_call for t in some):
        if id(t) not in place_of:  # several may be the same memory
            about = (t.data_ptr(), t.numel(), t.dtype, t.device, _order(t))
            place_of[id(t)] = found.setdefault(about, len(tensors))
            if place_of[id(t)] == len(tensors):
                tensors.append(t)
    places = tuple(tuple(tuple(place_of[id(t)] for t in some) for some in of_call) for of_call in lists)
    apart = not _overlap(tensors)
    key = (
        tuple(call.kind for call in calls),
        places,
        tuple(about[1:] for about in found),
        apart,
    )
    route = _routes.get(key)
    if route is not None:
        route.take(calls, tensors)
        return
    with COMPILING, unnoticed_by_others():
        route = _routes.get(key) or _Route(calls, places, tensors, apart)
        route.take(calls, tensors)
        _kept(_routes, key, lambda: route)


class _Route:
    """Plan of which parts of calls run as kernels; cached for all calls on tensors of the same kinds.

    Args:
        calls: the calls.
        places: indices of the tensors in each list of each call.
        tensors: of all calls, each memory once.
        apart: whether none of them overlap.
    """

    def __init__(
        self, calls: Sequence[FusedCall], places: Places, tensors: Sequence[Tensor], apart: bool
    ) -> None:
        strands = [s for s in _strands(calls, places, tensors) if s.is_large] if apart else []
        inner = {item for strand in strands for item in strand.items}
        outer = [[i for i in range(call.length) if (c, i) not in inner] for c, call in enumerate(calls)]
        self._outer = [(c, which) for c, which in enumerate(outer) if which]
        self._kernels: list[tuple[Callable[..., None], list[tuple[int, ...]]]] = []
        alike: dict[Hashable, list[_Strand]] = {}
        for strand in sorted(strands, key=lambda strand: strand.length):  # so that few kernels differ
            alike.setdefault(strand.kind, []).append(strand)
        for all_of_kind in alike.values():
            for some in (all_of_kind[k : k + TOGETHER] for k in range(0, len(all_of_kind), TOGETHER)):
                slots = list(zip(*(strand.slots for strand in some), strict=True))
                self._kernels.append((_kernel(some), slots))

    def take(self, calls: Sequence[FusedCall], tensors: Sequence[Tensor]) -> None:
        """Runs calls for which the route was made."""
        for c, which in self._outer:
            calls[c].do(which)
        for kernel, slots in self._kernels:
            kernel(*([_flat(tensors[k]) for k in slot] for slot in slots))


class _Strand:
    """All operations on one set of connected tensors, in order.

    The items are these operations, in the calls, places and tensors of a :class:`_Route`.

    Attributes:
        steps: for each operation its call, and the slots of the tensors in its lists.
        slots: index of the tensor in each slot.
        length: number of elements of each of these tensors.
        is_large: whether they are large enough for a kernel, of one length, and lie in memory in one order.
        kind: key that is equal for strands that the same kernel can run.
    """

    def __init__(
        self, items: Sequence[Item], calls: Sequence[FusedCall], places: Places, tensors: Sequence[Tensor]
    ) -> None:
        self.items = items
        slot_of: dict[int, int] = {}
        self.steps = [
            (calls[c], [slot_of.setdefault(some[i], len(slot_of)) for some in places[c]]) for c, i in items
        ]
        self.slots = list(slot_of)
        own = [tensors[k] for k in self.slots]
        lengths = {t.numel() for t in own if t.ndim}
        orders = {_order(t) for t in own if t.ndim}
        self.length = max(lengths)
        self.is_large = self.length >= SMALLEST and len(lengths) == len(orders) == 1 and None not in orders
        self.kind = (
            tuple((call.kind, tuple(slots)) for call, slots in self.steps),
            tuple((t.dtype, t.device) for t in own),
        )


def _strands(calls: Sequence[FusedCall], places: Places, tensors: Sequence[Tensor]) -> list[_Strand]:
    next_to = list(range(len(tensors)))

    def root(place: int) -> int:
        while next_to[place] != place:
            place = next_to[place]
        return place

    found: list[tuple[Item, int]] = []
    for c, of_call in enumerate(places):
        for i, aligned in enumerate(zip(*of_call, strict=True)):
            own = [place for place in aligned if tensors[place].ndim]  # numbers may be shared by all
            for place in own:
                next_to[root(place)] = root(own[0])
            found += [((c, i), own[0])] if own else []
    items: dict[int, list[Item]] = {}
    for item, place in found:
        items.setdefault(root(place), []).append(item)
    return [_Strand(some, calls, places, tensors) for some in items.values()]


def _overlap(tensors: Sequence[Tensor]) -> bool:
    """Whether different tensors share memory."""
    spans = sorted((t.data_ptr(), t.data_ptr() + _extent(t)) for t in tensors)
    return any(end > start for (_, end), (start, _) in pairwise(spans))


def _extent(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    if tensor.is_contiguous():
        return tensor.nbytes
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((size - 1) * stride for size, stride in steps)) * tensor.itemsize


def _kernel(strands: Sequence[_Strand]) -> Callable[..., None]:
    """The compiled function for some strands of one kind, from the cache or new."""
    key = (strands[0].kind, tuple(strand.length for strand in strands))
    program = _program(strands[0].steps)
    # Not with fullgraph=True, for which torch counts frames, for all threads together.
    return _kept(_compiled, key, lambda: torch.compile(program, dynamic=False))


def _program(steps: Sequence[tuple[FusedCall, list[int]]]) -> Callable[..., None]:
    parts = [(call.operation, call.layout, slots) for call, slots in steps]

    def program(*tensors: list[Tensor]) -> None:
        for operation, layout, slots in parts:
            _do(operation, layout, [tensors[k] for k in slots])

    # A copy of the code for each, since torch.compile makes only a few kernels for the same code.
    return types.FunctionType(program.__code__.replace(), globals(), closure=program.__closure__)


def _do(operation: Callable[..., None], layout: Mapping[str, Any], lists: Sequence[Any]) -> None:
    operation(**{name: _put_back(value, lists) for name, value in layout.items()})


def _order(tensor: Tensor) -> tuple[int, ...] | None:
    """What is the same for tensors whose elements lie in one order without gaps; ``None`` with gaps."""
    if tensor.is_contiguous():
        return ()  # of any shape
    return tensor.stride() if is_dense(tensor) else None


def _flat(tensor: Tensor) -> Tensor:
    return in_memory_order(tensor) if tensor.ndim else tensor


@dataclass(frozen=True)
class _Place:
    """Stands for a list of tensors in an argument, by the number of the list."""

    number: int


def _taken_out(value: Any, lists: list[Sequence[Any]]) -> Any:
    """Replaces the lists of tensors in an argument by places, and appends them to ``lists``."""
    if isinstance(value, Tensor):
        raise TypeError("A tensor would become a constant of the kernel: name the argument in numbers.")
    if not isinstance(value, list | tuple) or not value:
        return value
    if isinstance(value[0], Tensor):
        lists.append(list(value))  # a copy, since the caller may change the list
        return _Place(len(lists) - 1)
    return [_taken_out(inner, lists) for inner in value]


def _put_back(value: Any, lists: Sequence[Any]) -> Any:
    if isinstance(value, _Place):
        return lists[value.number]
    return [_put_back(inner, lists) for inner in value] if isinstance(value, list) else value


def _kept(memory: dict[Hashable, T], key: Hashable, make: Callable[[], T]) -> T:
    if key not in memory:
        if len(memory) >= MOST:
            memory.clear()
        memory[key] = make()
    return memory[key]


_compiled: dict[Hashable, Callable[..., None]] = {}
_routes: dict[Hashable, _Route] = {}
