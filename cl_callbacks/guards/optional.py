"""Packages that only some parts need."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def optional(package: str, extra: str) -> Any:
    """A package that is imported where it is used.

    Args:
        package: to import.
        extra: of this project, which installs it.

    Raises:
        ImportError: it is not installed.

    Example:
        >>> optional("no_such_package", "transformers")
        Traceback (most recent call last):
        ImportError: no_such_package is not installed: pip install 'cl_callbacks[transformers]'
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ImportError(f"{package} is not installed: pip install 'cl_callbacks[{extra}]'") from error
