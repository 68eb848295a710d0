"""Checks of numeric arguments, with error messages that name the argument."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any


def number(name: str, value: Any) -> float:
    """Returns ``value`` if it is a number, and raises otherwise, as for a text or ``True``.

    Example:
        >>> number("strength", "70")
        Traceback (most recent call last):
        ValueError: strength must be a number; got '70'
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ValueError(f"{name} must be a number; got {value!r}")
    return value  # type: ignore[return-value]


def integer(name: str, value: Any, least: int | None = None) -> int:
    """Returns ``value`` if it is an integer of at least ``least``, and raises otherwise.

    Example:
        >>> integer("samples", 0, least=1)
        Traceback (most recent call last):
        ValueError: samples must be a whole number, at least 1; got 0
    """
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        bound = "" if least is None else f", at least {least}"
        raise ValueError(f"{name} must be a whole number{bound}; got {value!r}")
    return value


def positive(name: str, value: Any, endless: bool = False) -> float:
    """Returns ``value`` as a float if it is above 0 and, unless ``endless``, finite; raises otherwise.

    Example:
        >>> positive("rate", float("nan"))
        Traceback (most recent call last):
        ValueError: rate must be a finite number above 0; got nan
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and value > 0 and (endless or math.isfinite(value))):
        raise ValueError(f"{name} must be a {'' if endless else 'finite '}number above 0; got {value!r}")
    return float(value)


def at_most_one(**given: Any) -> None:
    """Raises unless at most one of some arguments is given, that is, not ``None``.

    Example:
        >>> at_most_one(memory_steps=100, memory_epochs=2)
        Traceback (most recent call last):
        ValueError: memory_steps and memory_epochs set the same thing: give one of them
    """
    both = [name for name, value in given.items() if value is not None]
    if len(both) > 1:
        raise ValueError(f"{' and '.join(both)} set the same thing: give one of them")
