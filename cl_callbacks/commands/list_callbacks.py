"""``cl-callbacks rules``: lists the callbacks of the package, or the arguments of one."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from inspect import Parameter
from typing import TYPE_CHECKING

from lightning.pytorch import Callback

from cl_callbacks.commands.catalogue import callbacks, rooms
from cl_callbacks.commands.docstrings import description, first_sentence, meanings_of_arguments
from cl_callbacks.commands.nearest import hint, nearest_class
from cl_callbacks.guards.arguments import allowed_values
from cl_callbacks.guards.signatures import arguments_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def list_callbacks(names: Sequence[str]) -> None:
    """Prints one line for each callback, or with names the arguments of those callbacks.

    Raises:
        ValueError: a name that no callback has; the message has the nearest.
    """
    from rich.console import Console

    known = callbacks()
    for name in names:
        if name not in known:
            raise ValueError(f"there is no callback {name!r}{hint(nearest_class(name, known))}")
    console = Console(highlight=False)
    for shown in map(_arguments, (known[name] for name in names)) if names else [_lines()]:
        console.print(shown)


def _lines() -> Table:
    """The callbacks, each with the first sentence of its docstring, by room."""
    table = _two_columns()
    for room, kinds in rooms().items():
        table.add_row("")
        what = first_sentence(import_module(room)) if room else ""
        table.add_row(f"[bold]{room.rpartition('.')[2] or 'others'}[/]", f"[bold]{_escaped(what)}[/]")
        for kind in kinds:
            table.add_row(f"  {kind.__name__}", _escaped(first_sentence(kind)))
    table.add_row("")
    table.add_row("", "The arguments of one: cl-callbacks rules NAME")
    return table


def _arguments(kind: type[Callback]) -> RenderableType:
    """What a callback does, and its arguments with their defaults, meanings and what they may be."""
    from rich.console import Group

    table, allowed, meanings = _two_columns(), allowed_values(kind), meanings_of_arguments(kind)
    for name, argument in arguments_of(kind).items():
        needed = argument.default is Parameter.empty
        value = "[bold]needed[/]" if needed else _escaped(f"= {argument.default!r}")
        table.add_row(f"  [bold]{name}[/]", f"{value}  [dim]({_escaped(allowed.get(name, 'anything'))})[/]")
        table.add_row("", _escaped(meanings.get(name, "")))
    what, *more = description(kind)
    return Group(
        f"\n[bold]{kind.__name__}[/]: {_escaped(what)}\n", *(f"{_escaped(part)}\n" for part in more), table
    )


def _two_columns() -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    return table


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
