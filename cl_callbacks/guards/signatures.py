"""The arguments of a class whose ``**options`` are declared by the classes it extends."""

from __future__ import annotations

import difflib
import inspect
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_type_hints


def arguments_of(kind: type) -> dict[str, inspect.Parameter]:
    """The arguments of a class, including those that its ``**options`` hands on to the classes it extends.

    Example:
        >>> from cl_callbacks import MetaplasticGate
        >>> list(arguments_of(MetaplasticGate))[:3]
        ['steepness', 'parameters', 'exclude']
    """
    return dict(sorted(_arguments(kind.__mro__).items(), key=lambda item: item[1].kind))


def _arguments(kinds: Sequence[type]) -> dict[str, inspect.Parameter]:
    own, *others = itertools.dropwhile(lambda kind: "__init__" not in vars(kind), kinds)
    parameters = list(inspect.signature(vars(own)["__init__"]).parameters.values())[1:]
    found = {p.name: p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if others and any(p.kind is p.VAR_KEYWORD for p in parameters):
        inherited = _arguments(others)
        as_given = any(p.kind is p.VAR_POSITIONAL for p in parameters) and not found
        for name in vars(own).get("_options", inherited):
            if name in inherited.keys() - found.keys():  # `**options` takes it by keyword only
                p = inherited[name]
                found[name] = p if as_given else p.replace(kind=p.KEYWORD_ONLY)
    return found


def declare_arguments(kind: type) -> None:
    """Shows the arguments behind ``**options: Unpack[…]`` in the signature of a class.

    Notebooks, the command line and loggers read them there. The annotation is for type checkers and is
    removed at run time: ``jsonargparse`` would stop at it, and not read defaults in the base classes.
    """
    init = vars(kind).get("__init__")
    hint = getattr(init, "__annotations__", {}).pop("options", None)
    if isinstance(hint, str):
        try:
            hint = eval(hint, inspect.unwrap(init).__globals__)  # type: ignore[arg-type]
        except NameError:  # imported for type checkers alone: all that the parents take
            hint = None
    for options in get_args(hint):  # a TypedDict
        kind._options = tuple(get_type_hints(options))  # type: ignore[attr-defined]
    kind.__signature__ = inspect.Signature(list(arguments_of(kind).values()))  # type: ignore[attr-defined]


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


def snake_case(name: str) -> str:
    """A class name in small letters and underscores.

    Example:
        >>> snake_case("BennaFusi"), snake_case("RWalk"), snake_case("KFACLaplace")
        ('benna_fusi', 'rwalk', 'kfac_laplace')
    """
    # A single capital belongs to what follows.
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z]{2})(?=[A-Z][a-z])", "_", name).lower()


def call_text(made: Any, more: Mapping[str, Any]) -> str:
    """The call that makes an object, with the arguments that are not defaults; then ``more`` of it.

    A ``name`` that is that of the class is left out.
    """
    given = given_arguments(made)
    if given.get("name") == snake_case(type(made).__name__):
        del given["name"]
    arguments = ", ".join(f"{name}={value!r}" for name, value in {**given, **more}.items())
    return f"{type(made).__name__}({arguments})"


def given_arguments(made: Any) -> dict[str, Any]:
    """The arguments of an object that are not defaults: with them its class makes another one like it.

    Example:
        >>> from cl_callbacks import EWC
        >>> given_arguments(EWC(2.0, exclude="bias"))
        {'strength': 2.0, 'exclude': ('bias',), 'name': 'ewc'}
    """
    return {
        name: getattr(made, name)
        for name, argument in arguments_of(type(made)).items()
        if getattr(made, name, argument.default) not in (argument.default, ())
    }
