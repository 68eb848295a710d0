"""Warnings that come once and not after every task, fit or checkpoint."""

from __future__ import annotations

from weakref import WeakKeyDictionary

_SAID: WeakKeyDictionary[object, set[str]] = WeakKeyDictionary()


def first_time(of: object, matter: str) -> bool:
    """Whether this is asked for the first time for an object, such as a rule or a module, and a matter.

    Python's own filter for repeated warnings starts anew whenever filters are changed somewhere.

    Example:
        >>> class Rule: ...
        >>> rule = Rule()
        >>> first_time(rule, "half precision"), first_time(rule, "half precision")
        (True, False)
    """
    said = _SAID.setdefault(of, set())
    if matter in said:
        return False
    said.add(matter)
    return True
