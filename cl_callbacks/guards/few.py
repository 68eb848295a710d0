"""Short lists of names, and short values, for error messages."""

from __future__ import annotations

import reprlib
from typing import Any


def some(phrases: list[str]) -> str:
    """The first four of some phrases, and how many more there are, for messages.

    Example:
        >>> some(["a is 1", "b is 2"])
        'a is 1; b is 2'
    """
    return "; ".join(phrases[:4]) + (f"; and {len(phrases) - 4} more" if len(phrases) > 4 else "")


def few(names: list[str]) -> str:
    """Lists the first eight of some names, and the number of all, for messages.

    Example:
        >>> few(["weight", "bias"])
        'weight, bias'
    """
    return ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxdict = 12
        self.maxstring = self.maxother = 80

    def repr_int(self, x: int, level: int) -> str:
        """A number of which Python might refuse to print all digits is told by their number in base 2."""
        return repr(x) if abs(x) < 2**64 else f"a whole number of {x.bit_length()} bits"

    def repr_Tensor(self, x: Any, level: int) -> str:
        """A tensor is told by its shape, unless it is a number."""
        return f"a tensor of shape {tuple(x.shape)}" if x.ndim else repr(x)


_SHORT = _Short()


def shown(value: Any) -> str:
    """A value as Python would write it, but no longer than a message should be.

    Example:
        >>> shown(0.5), shown(10**400)
        ('0.5', 'a whole number of 1329 bits')
    """
    return _SHORT.repr(value)
