"""The arguments of a class whose ``**options`` are declared by the classes it extends."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable


def arguments_of(kind: type) -> dict[str, inspect.Parameter]:
    """Parameters of a class's ``__init__``, with those of its bases that ``**options`` passes on to.

    Example:
        >>> from cl_callbacks import MetaplasticGate
        >>> list(arguments_of(MetaplasticGate))[:3]
        ['steepness', 'parameters', 'exclude']
    """
    found: dict[str, inspect.Parameter] = {}
    for parent in kind.__mro__:
        if parent is object or "__init__" not in vars(parent):
            continue
        parameters = list(inspect.signature(vars(parent)["__init__"]).parameters.values())[1:]
        for p in parameters:
            if p.kind is not p.VAR_KEYWORD:
                found.setdefault(p.name, p)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return dict(sorted(found.items(), key=lambda item: item[1].kind))


def declare_arguments(kind: type) -> None:
    """Sets a class's signature to all arguments, for notebooks, the command line and W&B.

    The annotation of ``**options`` is for type checkers. Without it ``jsonargparse`` follows the options
    to where they are declared, with their defaults and descriptions.
    """
    # This is for inspection only: calls are still checked against `__init__` itself.
    kind.__signature__ = inspect.Signature(list(arguments_of(kind).values()))  # type: ignore[attr-defined]
    if "__init__" in vars(kind):
        vars(kind)["__init__"].__annotations__.pop("options", None)


def nearest_argument(kind: type, name: str) -> str | None:
    """The argument of a class whose name is nearest to a given one; ``None`` if none is near.

    Example:
        >>> from cl_callbacks import EWC
        >>> nearest_argument(EWC, "stength")
        'strength'
    """
    found = difflib.get_close_matches(name, inspect.signature(kind).parameters, n=1, cutoff=0.5)
    return found[0] if found else None


def refuse_unknown(kind: type, unknown: Iterable[str]) -> None:
    """Raises a TypeError for an argument that a class does not have, with the nearest that it has."""
    for name in unknown:
        nearest = nearest_argument(kind, name)
        hint = f"the nearest is {nearest!r}" if nearest else "none is near"
        raise TypeError(
            f"{kind.__name__} has no argument {name!r}: {hint} of {', '.join(arguments_of(kind))}."
        )
