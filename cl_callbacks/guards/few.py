"""Short lists of names for error messages."""

from __future__ import annotations


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
