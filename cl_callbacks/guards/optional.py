"""Imports of optional dependencies."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def optional(package: str, extra: str) -> Any:
    """Imports a package that only some features need, and that an extra of this project installs.

    Raises:
        ImportError: the package is not installed; the message names the extra.

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
