"""Places in a step at which a rule works on its state, in order that copies can begin before it asks."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, device

Load = tuple[Tensor, device]
"""A tensor of stored state, and the device to which it is copied."""

AHEAD_BYTES = 2**27
"""Most bytes that are copied before a rule asks for them, if it works on all parameters at once."""


class Visit:
    """What a rule asked for when it was last at one place of a step, and where it asked for something next.

    Args:
        changing: whether the rule may change its state there.

    Example:
        >>> from torch import zeros
        >>> state, here, there = zeros(4), Visit(), Visit()
        >>> here.asked, there.asked = [(state[:3], device("cpu"))], [(state[2:], device("cpu"))]
        >>> here.next = there
        >>> here.ahead()
        []
        >>> there.asked = [(state[3:], device("cpu"))]
        >>> here.ahead()
        [(tensor([0.]), device(type='cpu'))]
    """

    def __init__(self, changing: bool = True) -> None:
        self.changing = changing
        self.asked: list[Load] = []
        """In this order, and a new list whenever it changes."""
        self.next: Visit | None = None
        self._ahead: list[Load] = []
        self._made_from: tuple[list[Load], list[Load]] | None = None

    def ahead(self) -> list[Load]:
        """What the next visit will ask for, but for memory that this one changes, within the limit."""
        if self.next is None:
            return []
        asked = self.asked, self.next.asked
        if self._made_from is None or any(a is not b for a, b in zip(asked, self._made_from, strict=True)):
            self._made_from, self._ahead = asked, []
            own = [_memory(kept) for kept, _ in self.asked if self.changing]
            room = AHEAD_BYTES
            for kept, where in self.next.asked:
                start, stop = _memory(kept)
                room -= kept.nbytes
                if room >= 0 and all(stop <= begin or end <= start for begin, end in own):
                    self._ahead.append((kept, where))
        return self._ahead


def by_device(loads: Iterable[Load]) -> dict[device, list[Tensor]]:
    """The stored tensors by the device to which they are copied."""
    found: dict[device, list[Tensor]] = {}
    for kept, where in loads:
        found.setdefault(where, []).append(kept)
    return found


def _memory(tensor: Tensor) -> tuple[int, int]:
    """The first address of a tensor, and the first after it."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in pairs) if tensor.numel() else -1
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.itemsize
