"""Checks the arguments of a call against their annotations and declared bounds, and says which is wrong."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from torch import Tensor

from cl_callbacks.guards.bounds import ANY, Bounds
from cl_callbacks.guards.few import shown

P = ParamSpec("P")
R = TypeVar("R")

_BOUNDS: dict[Callable[..., Any], Mapping[str, Bounds]] = {}
"""Declared bounds of what is decorated."""
_LARGEST = 2**63 - 1  # that torch and numpy hold
_TYPES = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a text"}


def checked(**bounds: Bounds) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator of a constructor or function, which refuses arguments that cannot work.

    Each argument has to be what its annotation says, finite, and within the bounds that are declared for it,
    here or by the constructor of a class above. Texts and lists must not be empty, unless that is declared.
    Numbers of numpy and tensors with one number and no dimension become Python's. The ``**options`` of a
    constructor are checked as those of the classes that it hands them on to, before it does anything. What is
    annotated as ``Any`` or as a protocol is not checked, nor are defaults.

    Raises:
        ValueError: from the decorated function, with the name of the argument.

    Example:
        >>> from cl_callbacks.guards.bounds import AT_LEAST_ONE
        >>> @checked(samples=AT_LEAST_ONE)
        ... def measure(samples: int | None = None, mode: Literal["max", "min"] = "max"):
        ...     return samples
        >>> measure(np.int64(3))
        3
        >>> measure(2.5)
        Traceback (most recent call last):
        ValueError: measure: samples must be a whole number, at least 1, or None; got 2.5
        >>> measure(mode="mean")
        Traceback (most recent call last):
        ValueError: measure: mode must be 'max' or 'min'; got 'mean'
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature, _BOUNDS[function] = inspect.signature(function), bounds
        several = next((n for n, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD), "")
        if not bounds.keys() <= signature.parameters.keys():
            raise TypeError(f"{function.__qualname__} has no {sorted(bounds.keys() - signature.parameters)}")

        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs)
            except TypeError:
                given = None
            if given is None:
                return function(*args, **kwargs)  # Python itself says what is missing or unknown
            made: Any = type(args[0]) if args and function.__name__ == "__init__" else function
            above = _constructors_above(function, made)
            declared = {name: own for init in reversed(above) for name, own in _BOUNDS[init].items()}
            options = given.arguments.get(several, {})
            for init in above:
                options.update(check_arguments(made, init, options, declared))
            own = check_arguments(made, function, given.arguments, {**declared, **bounds})
            given.arguments.update(own)
            return function(*given.args, **given.kwargs)

        return wrapper

    return decorate


def check_arguments(
    made: Any, function: Callable[..., Any], given: Mapping[str, Any], bounds: Mapping[str, Bounds]
) -> dict[str, Any]:
    """The given arguments of a function that are annotated, as their types and bounds ask, or an error.

    For a function that :func:`checked` cannot decorate, since others read its caller's variables.

    Args:
        made: the class that is built, or the function, for the error.
        function: with the annotations.
        given: the arguments by name, among others.
        bounds: declared for some of them.

    Raises:
        ValueError: one that does not fit, by name.
    """
    hints = _hints(function)
    return {
        name: fitted(name, value, hints[name], bounds.get(name, ANY), f"{made.__name__}: ")
        for name, value in given.items()
        if name in hints
    }


def allowed_values(kind: type) -> dict[str, str]:
    """What each argument of a class may be, as an error would say it.

    Example:
        >>> from cl_callbacks import EpochBoundaries
        >>> allowed_values(EpochBoundaries)
        {'every_n_epochs': 'a whole number, at least 1'}
    """
    made = [inspect.unwrap(vars(k)["__init__"]) for k in reversed(kind.__mro__) if "__init__" in vars(k)]
    hints = {name: hint for init in made for name, hint in _hints(init).items()}
    bounds = {name: own for init in made for name, own in _BOUNDS.get(init, {}).items()}
    return {name: _allowed(hint, bounds.get(name, ANY)) for name, hint in hints.items() if name != "return"}


@cache
def _constructors_above(function: Callable[..., Any], made: Any) -> list[Callable[..., Any]]:
    """Decorated constructors of the classes that come after that of a constructor; none for a function."""
    kinds = made.__mro__ if isinstance(made, type) else ()
    inits = [inspect.unwrap(vars(kind)["__init__"]) for kind in kinds if "__init__" in vars(kind)]
    above = inits[inits.index(function) + 1 :] if function in inits else []
    return [init for init in above if init in _BOUNDS]


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of arguments, but for ``**options``, which are those of other functions."""
    single = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    hints = get_type_hints(function)
    return {name: hints[name] for name in single if name in hints}


def fitted(name: str, value: Any, hint: Any, bounds: Bounds = ANY, whose: str = "") -> Any:
    """A value of the type of a hint, such as a Python number in place of numpy's.

    Raises:
        ValueError: it is of another type, or out of bounds; the message has the name.

    Example:
        >>> fitted("factors", [1, -3.0], Sequence[float], Bounds(above=0))
        Traceback (most recent call last):
        ValueError: factors must be a list, each a finite number above 0; got [1, -3.0]
    """
    try:
        return _fit(value, hint, bounds)
    except _Unfit:
        raise ValueError(f"{whose}{name} must be {_refusal(name, value, hint, bounds)}") from None


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


class _Unfit(Exception):
    """A value is not what a hint asks for."""


def _fit(value: Any, hint: Any, bounds: Bounds) -> Any:
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return _fit_one_of(value, parts, bounds)
    if kind is Literal:
        return _fit_choice(value, parts)
    if kind in (int, float, bool):
        return _fit_number(_plain(value), kind, bounds)
    if kind is str:
        return str(_require(value, isinstance(value, str) and value != ""))
    if kind in (Sequence, Mapping):
        return _fit_elements(value, kind, parts, bounds)
    if not inspect.isclass(kind) or kind is Any or getattr(kind, "_is_protocol", False):
        return value
    return _require(value, isinstance(value, kind))


def _require(value: Any, fits: bool) -> Any:
    if not fits:
        raise _Unfit
    return value


def _fit_one_of(value: Any, hints: Sequence[Any], bounds: Bounds) -> Any:
    for hint in hints:
        try:
            return _fit(value, hint, bounds)
        except _Unfit:
            continue
    raise _Unfit


def _fit_choice(value: Any, choices: Sequence[Any]) -> Any:
    for choice in choices:
        if isinstance(value, type(choice)) and value == choice:
            return choice
    raise _Unfit


def _plain(value: Any) -> Any:
    """Python's number for one of numpy, and for an array or tensor of no dimension."""
    if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0:
        return value if getattr(value, "is_meta", False) else value.item()
    return value


def _fit_number(value: Any, kind: type, bounds: Bounds) -> Any:
    if kind is bool or isinstance(value, bool):
        return _require(value, kind is bool and isinstance(value, bool))
    if isinstance(value, Integral):
        value = int(value)
        limit = sys.float_info.max if kind is float else _LARGEST
        _require(value, -limit <= value <= limit)
    elif isinstance(value, Real) and kind is float:
        value = value if type(value) is float else _as_float(value)
    else:
        raise _Unfit
    return _require(value, bounds.allow(value))


def _as_float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:
        raise _Unfit from None


def _fit_elements(value: Any, kind: Any, hints: Sequence[Any], bounds: Bounds) -> Any:
    if kind is Sequence and isinstance(value, np.ndarray | Tensor) and value.ndim == 1:
        value = value.tolist()
    if isinstance(value, str | bytes) or not isinstance(value, kind) or not (len(value) or bounds.empty):
        raise _Unfit
    if kind is Mapping:
        pairs = {_fit(k, hints[0], ANY): _fit(v, hints[1], bounds) for k, v in value.items()}
        return value if all(pairs[k] is v for k, v in value.items()) else pairs
    found = [_fit(element, hints[0], bounds) for element in value]
    unchanged = all(new is old for new, old in zip(found, value, strict=True))
    return value if unchanged else tuple(found) if isinstance(value, tuple) else found


def _refusal(name: str, value: Any, hint: Any, bounds: Bounds) -> str:
    """What would have been allowed, what was given instead, and what to do."""
    empty = isinstance(value, str | Sequence | Mapping) and len(value) == 0
    advice = f": leave {name} out, or give None" if empty and NoneType in get_args(hint) else ""
    return f"{_allowed(hint, bounds)}; got {shown(value)}{advice}"


def _allowed(hint: Any, bounds: Bounds) -> str:
    *most, last = _words(hint, bounds)
    comma = "," if any(word.startswith("a") for word in most) else ""  # not between choices
    return f"{', '.join(most)}{comma} or {last}" if most else last


def _words(hint: Any, bounds: Bounds) -> list[str]:
    """What a hint allows: a phrase for each alternative."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        none_last = sorted(parts, key=lambda part: part is NoneType)
        return [word for part in none_last for word in _words(part, bounds)]
    if kind is Literal:
        return [repr(choice) for choice in parts]
    if kind is NoneType:
        return ["None"]
    if kind in (Sequence, Mapping):
        inner = " or ".join(_words(parts[-1], bounds)) if parts else "anything"
        return [f"a {'list' if kind is Sequence else 'mapping'}, each {inner}"]
    if kind in _TYPES:
        word = "a number" if kind is float and bounds.endless else _TYPES[kind]
        return [f"{word}{bounds}" if kind in (int, float) else word]
    if kind is Any:
        return ["anything"]
    name = "function" if kind is Callable else getattr(kind, "__name__", str(kind))
    return [f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"]
