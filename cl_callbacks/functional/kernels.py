"""Operations that follow one another on the same tensors, as one compiled loop over memory."""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

SMALLEST = 2**14
"""Elements from which on a tensor is worth a loop of its own, which takes a tenth of a second to compile."""

TOGETHER = 32
"""Tensors whose loops are one kernel: to call one costs as much as a hundred thousand elements do."""

MOST = 256
"""Kernels that are kept, and ways to call them."""

Lists = Sequence[Sequence[Sequence[Tensor]]]
"""Of each call its aligned lists of tensors."""

Item = tuple[int, int]
"""One of some calls, and a place in its lists."""


class Call:
    """An operation that is to be done.

    Args:
        operation: elementwise and in place.
        arguments: by name. Lists of tensors, and lists of such, are aligned: what is done to the first
            tensors of all is also done to the second, and so on. Whatever else there is becomes part of a
            kernel.
        numbers: names of arguments that are a number or an aligned list of them, for which a kernel takes
            tensors without dimensions, so that they may change.
    """

    def __init__(
        self, operation: Callable[..., None], arguments: Mapping[str, Any], numbers: Iterable[str] = ()
    ) -> None:
        self.operation = operation
        self.lists: list[Sequence[Any]] = []
        given = {name: arguments[name] for name in numbers if name in arguments}
        self.layout = {n: _taken_out(v, self.lists) for n, v in arguments.items() if n not in given}
        self.length = len(self.lists[0])
        for name, value in given.items():
            self.layout[name] = _Place(len(self.lists))
            self.lists.append(list(value) if isinstance(value, list | tuple) else [value] * self.length)
        self.kind = (operation, repr(self.layout))

    def do(self, which: Iterable[int]) -> None:
        """Does it to some of the tensors."""
        _do(self.operation, self.layout, [[some[i] for i in which] for some in self.lists])

    def tensors(self) -> list[Sequence[Tensor]]:
        """All its lists, those of numbers too."""
        device = self.lists[0][0].device
        return [
            some
            if isinstance(some[0], Tensor)
            else torch.tensor(some, dtype=torch.float64).to(device, non_blocking=True).unbind()
            for some in self.lists
        ]


def run(calls: Sequence[Call]) -> None:
    """Does what was asked, in its order, with one loop for all that is done to the same large tensor."""
    lists = [call.tensors() for call in calls]
    tensors = [t for of_call in lists for some in of_call for t in some]
    places: dict[int, int] = {}
    key = (
        tuple((call.kind, call.length) for call in calls),
        tuple(places.setdefault(t.data_ptr(), len(places)) for t in tensors),
        tuple((t.numel(), t.dtype, t.device, t.is_contiguous()) for t in tensors),
        _overlap(tensors),
    )
    if key not in _routes:
        if len(_routes) >= MOST:
            _routes.clear()
        _routes[key] = _Route(calls, lists, apart=not key[-1])
    _routes[key].take(calls, tensors)


class _Route:
    """How calls come to be done: found once, and the same whenever they concern tensors like these.

    Args:
        calls: such calls.
        lists: their tensors.
        apart: whether tensors that are not the same memory have none in common.
    """

    def __init__(self, calls: Sequence[Call], lists: Lists, apart: bool) -> None:
        strands = [strand for strand in _strands(calls, lists) if strand.is_large] if apart else []
        inner = {item for strand in strands for item in strand.items}
        outer = [[i for i in range(call.length) if (c, i) not in inner] for c, call in enumerate(calls)]
        self._outer = [(c, which) for c, which in enumerate(outer) if which]
        self._kernels: list[tuple[Callable[..., None], list[tuple[int, ...]]]] = []
        alike: dict[Hashable, list[_Strand]] = {}
        for strand in sorted(strands, key=lambda strand: strand.length):  # so that few kernels differ
            alike.setdefault(strand.kind, []).append(strand)
        for found in alike.values():
            for some in (found[k : k + TOGETHER] for k in range(0, len(found), TOGETHER)):
                slots = list(zip(*(strand.numbers for strand in some), strict=True))
                self._kernels.append((_kernel(some), slots))

    def take(self, calls: Sequence[Call], tensors: Sequence[Tensor]) -> None:
        """Does them; the tensors are those of all lists, one after the other."""
        for c, which in self._outer:
            calls[c].do(which)
        for kernel, slots in self._kernels:
            kernel(*([_flat(tensors[k]) for k in slot] for slot in slots))


class _Strand:
    """What is done to the same memory.

    Args:
        items: in order.
        calls: that they are of.
        lists: tensors of these calls.

    Attributes:
        steps: each call, and from which slots it gets the tensors of its lists.
        numbers: for each slot which it holds of all tensors of all lists.
        length: of the tensors.
        is_large: whether they are worth a kernel, and all fit for one.
        kind: what strands of one kernel have in common.
    """

    def __init__(self, items: Sequence[Item], calls: Sequence[Call], lists: Lists) -> None:
        self.items = items
        firsts = list(accumulate((call.length * len(call.lists) for call in calls), initial=0))
        slot_of: dict[int, int] = {}
        tensors: list[Tensor] = []
        self.numbers: list[int] = []
        self.steps: list[tuple[Call, list[int]]] = []
        for c, i in items:
            for k, some in enumerate(lists[c]):
                if some[i].data_ptr() not in slot_of:
                    slot_of[some[i].data_ptr()] = len(tensors)
                    tensors.append(some[i])
                    self.numbers.append(firsts[c] + k * calls[c].length + i)
            self.steps.append((calls[c], [slot_of[some[i].data_ptr()] for some in lists[c]]))
        lengths = {t.numel() for t in tensors if t.ndim}
        self.length = max(lengths)
        self.is_large = (
            self.length >= SMALLEST and len(lengths) == 1 and all(t.is_contiguous() for t in tensors)
        )
        self.kind = (
            tuple((call.kind, tuple(slots)) for call, slots in self.steps),
            tuple((t.dtype, t.device) for t in tensors),
        )


def _strands(calls: Sequence[Call], lists: Lists) -> list[_Strand]:
    found: list[tuple[Item, list[int]]] = []  # with the addresses that each item concerns
    for c, of_call in enumerate(lists):
        for i, aligned in enumerate(zip(*of_call, strict=True)):
            addresses = [t.data_ptr() for t in aligned if t.ndim]
            if addresses:
                found.append(((c, i), addresses))
    next_to: dict[int, int] = {}

    def root(address: int) -> int:
        while next_to.setdefault(address, address) != address:
            address = next_to[address]
        return address

    for _, addresses in found:
        for address in addresses:
            next_to[root(address)] = root(addresses[0])
    items: dict[int, list[Item]] = {}
    for item, addresses in found:
        items.setdefault(root(addresses[0]), []).append(item)
    return [_Strand(some, calls, lists) for some in items.values()]


def _overlap(tensors: Sequence[Tensor]) -> bool:
    """Whether a tensor shares memory with another that does not have the same in the same order."""
    spans = sorted({(t.data_ptr(), t.data_ptr() + _extent(t), t.is_contiguous()) for t in tensors})
    return any(end > start for (_, end, _), (start, _, _) in pairwise(spans))


def _extent(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    if tensor.is_contiguous():
        return tensor.nbytes
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((size - 1) * stride for size, stride in steps)) * tensor.itemsize


def _kernel(strands: Sequence[_Strand]) -> Callable[..., None]:
    """For strands of one kind."""
    key = (strands[0].kind, tuple(strand.length for strand in strands))
    if key not in _compiled:
        if len(_compiled) >= MOST:
            _compiled.clear()
        _compiled[key] = torch.compile(_program(strands[0].steps), fullgraph=True, dynamic=False)
    return _compiled[key]


def _program(steps: Sequence[tuple[Call, list[int]]]) -> Callable[..., None]:
    parts = [(call.operation, call.layout, slots) for call, slots in steps]

    def program(*tensors: list[Tensor]) -> None:
        for operation, layout, slots in parts:
            _do(operation, layout, [tensors[k] for k in slots])

    # A copy of the code for each, since torch.compile makes only a few kernels for the same code.
    return types.FunctionType(program.__code__.replace(), globals(), closure=program.__closure__)


def _do(operation: Callable[..., None], layout: Mapping[str, Any], lists: Sequence[Any]) -> None:
    operation(**{name: _put_back(value, lists) for name, value in layout.items()})


def _flat(tensor: Tensor) -> Tensor:
    return tensor.view(-1) if tensor.ndim else tensor


@dataclass(frozen=True)
class _Place:
    """Where an argument had a list."""

    number: int


def _taken_out(value: Any, lists: list[Sequence[Any]]) -> Any:
    """An argument with places instead of its lists of tensors, which go to ``lists``."""
    if isinstance(value, Tensor):
        raise TypeError("A tensor would become a constant of the kernel: name the argument in numbers.")
    if not isinstance(value, list | tuple) or not value:
        return value
    if isinstance(value[0], Tensor):
        lists.append(list(value))  # as it is now, whatever becomes of the list
        return _Place(len(lists) - 1)
    return [_taken_out(inner, lists) for inner in value]


def _put_back(value: Any, lists: Sequence[Any]) -> Any:
    if isinstance(value, _Place):
        return lists[value.number]
    return [_put_back(inner, lists) for inner in value] if isinstance(value, list) else value


_compiled: dict[Hashable, Callable[..., None]] = {}
_routes: dict[Hashable, _Route] = {}
