"""Short lists of names for error messages."""

from __future__ import annotations


def few(names: list[str]) -> str:
    """Lists the first eight of some names, and the number of all, for messages.

    Example:
        >>> few(["weight", "bias"])
        'weight, bias'
    """
    return ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")
