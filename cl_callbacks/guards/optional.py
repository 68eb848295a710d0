"""Imports of optional dependencies."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

_PROJECT = "cl_callbacks"


class NotInstalled(ImportError):
    """A package that only some features need is not installed; the message says how to install it."""


def optional(package: str, extra: str) -> Any:
    """Imports a package that only some features need, and that an extra of this project installs.

    Raises:
        NotInstalled: the package is not installed; the message has the command that installs it.

    Example:
        >>> optional("no_such_package", "transformers")
        Traceback (most recent call last):
        cl_callbacks.guards.optional.NotInstalled: no_such_package is not installed: pip install ...
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise NotInstalled(f"{package} is not installed: {install_command(package, extra)}") from error


def install_command(package: str, extra: str, root: Path | None = None) -> str:
    """The command that installs an extra without asking an index for this project, which may not have it.

    Args:
        package: that is missing, for an installation that does not say what it needs.
        extra: the extra that it belongs to.
        root: the folder that this package is in; default: its own.
    """
    root = Path(__file__).parents[2] if root is None else root
    project = root / "pyproject.toml"
    if project.is_file() and f'name = "{_PROJECT}"' in project.read_text(encoding="utf-8"):  # a clone
        return f"pip install -e {shlex.quote(f'{root}[{extra}]')}"
    try:
        needed = requires(_PROJECT) or []
    except PackageNotFoundError:
        needed = []
    of_extra = re.compile(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]")
    found = [need.partition(";")[0].strip() for need in needed if of_extra.search(need)]
    return f"pip install {' '.join(map(shlex.quote, found or [package]))}"
