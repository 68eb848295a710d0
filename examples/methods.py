"""What the examples' ``--methods`` may be: names, and several of them joined by +, such as ``er+ewc``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback

# By name: what builds the callback of a method, with its defaults, and the argument that `--strength` sets.
Methods = Mapping[str, tuple[Callable[..., Callback], str] | None]


def chosen_from(methods: Methods) -> Callable[[str], str]:
    """Checks the names in a method, for the command line."""

    def method(text: str) -> str:
        unknown = [name for name in text.split("+") if name not in methods]
        if unknown:
            choices = f"(choose from {', '.join(methods)}, or several joined by +)"
            raise argparse.ArgumentTypeError(f"invalid choice: {', '.join(unknown)} {choices}")
        return text

    return method


def callbacks_of(
    methods: Methods, method: str, strength: float | None = None, **options: Any
) -> list[Callback]:
    """The callbacks of a method, of default strength unless one is given."""
    found = []
    for name in method.split("+"):
        if (known := methods[name]) is not None:
            build, argument = known
            value = int(strength) if strength is not None and argument == "levels" else strength
            found.append(build(**({} if value is None else {argument: value}), **options))
    return found


def strength_of(methods: Methods, method: str, callbacks: list[Callback]) -> float:
    """The value of the argument that `--strength` sets, of the first callback of a method; 0 without one."""
    arguments = [known[1] for name in method.split("+") if (known := methods[name]) is not None]
    given = [getattr(rule, argument) for rule, argument in zip(callbacks, arguments, strict=True)]
    # Of widths by layer, and the mean over tasks: 0.
    return next((float(value) for value in given if isinstance(value, int | float)), 0.0)
