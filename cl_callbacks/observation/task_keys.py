"""Names by which several TaskEvaluations of a Trainer tell their keys and files apart."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks.training import log_keys


def names_apart(given: Sequence[tuple[str | None, str]]) -> list[str]:
    """A name for each: the given one, none for the first without, for others that of its monitor.

    Args:
        given: name or ``None``, and monitor of each.

    Raises:
        MisconfigurationException: two would have the same.

    Example:
        >>> names_apart([(None, "val/acc"), (None, "val/loss"), ("rank", "val/acc")])
        ['', 'val_loss', 'rank']
    """
    first = next((i for i, (name, _) in enumerate(given) if name is None), None)
    names = ["" if i == first else name or _plain(monitor) for i, (name, monitor) in enumerate(given)]
    for name in names:
        if names.count(name) > 1:
            raise MisconfigurationException(
                f"Two TaskEvaluations of this Trainer would write the same keys, "
                f"{log_keys.task('average', name)!r}: give one of them another name=."
            )
    return names


def checked_name(name: str | None) -> str | None:
    """The name, if keys and files can have it.

    Raises:
        ValueError: they cannot.
    """
    if name is not None and not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"name is for keys and files: letters, digits, '_', '-' and '.'; got {name!r}")
    return name


def _plain(monitor: str) -> str:
    return re.sub(r"[^\w.-]+", "_", monitor.replace("{task}", "")).strip("_")
