"""The constructor arguments of an object as plain values of bounded size, without secrets, for loggers."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from enum import Enum
from functools import partial
from itertools import islice
from numbers import Number
from os import PathLike, fspath
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import torch

from cl_callbacks.guards.safe_names import readable

MOST_ITEMS, MOST_LEVELS, MOST_CHARACTERS, MOST_VALUES = 32, 4, 200, 1000
"""Bounds on the items of one container, containers within each other, a text, and all values together."""

HIDDEN = "(hidden)"
"""Stands for what may be a secret."""

_MISSING = object()
_PACKAGE = __name__.partition(".")[0]
_SECRET_WORDS = {
    *("key", "keys", "apikey", "token", "secret", "secrets", "password", "passwords", "passwd", "pwd"),
    *("passphrase", "credential", "credentials", "auth", "authorization", "bearer", "cookie", "private"),
}
_SECRET_TEXT = re.compile(
    r"(?:key|token|secret|passwo?r?d|pwd|credentials?|authorization|cookie)[\"']?\s*[=:]"  # as api_key=…
    r"|\bbearer\s|://[^/\s]*@|-----BEGIN|\beyJ[\w-]{10}"
    r"|\b(?:sk|pk|rk|hf|ghp|gho|ghs|ghu|github_pat|glpat|xox[abpr]|wandb)[-_]\w{8}|\bAKIA\w{12}",
    re.IGNORECASE,
)
_PATH = re.compile(
    r"(?:(?<![\w.\-/:])|(?<=file://))(?:/|~/|[A-Za-z]:[\\/]|\\\\)[^\s\"'<>|,;]*[\\/][^\s\"'<>|,;]+"
)


def configuration(made: Any) -> dict[str, Any]:
    """Class and constructor arguments of an object, as far as it has attributes of their names.

    Values are numbers, texts, lists and dicts of bounded size: what is longer or deeper ends in ``"…"``.
    What has the name of a secret (``key``, ``token``, ``password`` …) in classes of others, and texts that
    look like one, are hidden; absolute paths are relative to the present folder or their last part. Texts
    that an object of another package holds are shown where they are its defaults. Nothing is called but the
    attributes of the arguments' names, and one that raises is named with its error.

    Example:
        >>> from cl_callbacks import EpochBoundaries
        >>> configuration(EpochBoundaries(5))
        {'class': 'EpochBoundaries', 'every_n_epochs': 5}
    """
    return _Plain().of_object(made, 0)


def configuration_name(made: Any) -> str:
    """The name of a callback, or else that of its class in small letters."""
    try:
        name = getattr(made, "name", None)
    except Exception:  # a property of the user's; its class has a name
        name = None
    return readable(name if isinstance(name, str) and name else type(made).__name__.lower())


def is_of_this_package(made: Any) -> bool:
    """Whether the class of an object is of this package or derived from one that is."""
    return any(kind.__module__.startswith(f"{_PACKAGE}.") for kind in type(made).__mro__)


class _Plain:
    """Makes plain values of anything, and counts them."""

    def __init__(self) -> None:
        self._values, self._open = 0, set[int]()

    def of_object(self, made: Any, level: int) -> dict[str, Any]:
        """Class and arguments of an object."""
        found: dict[str, Any] = {"class": type(made).__name__}
        own, known = is_of_this_package(made), _arguments_of_this_package(type(made))
        for name, argument in islice(_arguments(type(made)).items(), MOST_ITEMS):
            try:
                value = getattr(made, name, _MISSING)
                if value is not _MISSING:
                    default = isinstance(value, str) and value == argument.default
                    plain = self.of if name in known else partial(self._named, name)
                    found[name] = plain(value, level, own or default)
            except Exception as error:  # of a property of the user's, which must not end a training
                found[name] = f"({type(error).__name__})"
        return found

    def _named(self, name: str, value: Any, level: int, own: bool) -> Any:
        hidden = _is_secret(name) and value is not None and not isinstance(value, bool)
        return HIDDEN if hidden else self.of(value, level, own)

    def of(self, value: Any, level: int, own: bool) -> Any:
        """The plain value; ``own`` says whether texts are shown."""
        self._values += 1
        if value is None or isinstance(value, bool | np.bool_):
            return None if value is None else bool(value)
        if isinstance(value, Enum):
            return value.name
        if isinstance(value, Number):
            return _number(value)
        if isinstance(value, np.ndarray | torch.Tensor):
            return self._array(value)
        if isinstance(value, str):
            return _text(value) if own else _about(value)
        if isinstance(value, PathLike):
            return _text(str(fspath(value)))
        if isinstance(value, torch.dtype | torch.device):
            return str(value)
        if isinstance(value, torch.nn.Module):  # whose arguments may be tensors, or anything
            return type(value).__name__
        if isinstance(value, type) or inspect.isroutine(value):
            return value.__name__
        if isinstance(value, bytes | bytearray | memoryview):
            return _about(value)
        if level >= MOST_LEVELS or self._values > MOST_VALUES or id(value) in self._open:
            return "…"
        self._open.add(id(value))
        try:
            return self._container(value, level + 1, own)
        finally:
            self._open.discard(id(value))

    def _container(self, value: Any, level: int, own: bool) -> Any:
        if isinstance(value, Mapping):
            some = islice(value.items(), MOST_ITEMS)
            found = {_key(key): self._named(str(key), v, level, own) for key, v in some}
            return found | ({"…": f"{len(value)} in all"} if len(value) > MOST_ITEMS else {})
        if isinstance(value, list | tuple | set | frozenset | range):
            plain = [self.of(v, level, own) for v in islice(value, MOST_ITEMS)]
            return plain if len(value) <= MOST_ITEMS else [*plain, f"… {len(value)} in all"]
        return self.of_object(value, level)

    def _array(self, value: np.ndarray | torch.Tensor) -> Any:
        """The number, a short list of them, or what kind of array it is."""
        shape = tuple(value.shape)
        if len(shape) > 1 or math.prod(shape) > MOST_ITEMS or getattr(value, "is_meta", False):
            return f"{type(value).__name__} {shape}"
        return self.of(value.tolist(), MOST_LEVELS - 1, False)


def _number(value: Any) -> Any:
    if isinstance(value, int | np.integer):
        whole = int(value)
        return whole if abs(whole) < 2**63 else f"integer of {whole.bit_length()} bits"
    return str(value) if isinstance(value, complex | np.complexfloating) else float(value)


def _key(key: Any) -> str:
    return _text(str(key)) if isinstance(key, str | int | float) else _about(key)


def _arguments(kind: type) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(kind).parameters
    except (TypeError, ValueError):  # a class that is not written in Python
        return {}


def _arguments_of_this_package(kind: type) -> set[str]:
    """Arguments that a class has from this package, none of which is a secret, whatever its name."""
    kinds = (k for k in kind.__mro__ if k.__module__.startswith(f"{_PACKAGE}."))
    return {name for k in kinds for name in _arguments(k)}


def _is_secret(name: str) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return not _SECRET_WORDS.isdisjoint(re.split(r"[^a-z]+", words))


def _about(value: Any) -> str:
    size = f" of {len(value)}" if isinstance(value, str | bytes | bytearray) else ""
    return f"({type(value).__name__}{size})"


def _text(value: str) -> str:
    """A text without what looks like a secret and without folders of this machine, cut."""
    value = str.__str__(value)[: 16 * MOST_CHARACTERS]
    if _SECRET_TEXT.search(value):
        return HIDDEN
    whole = value.startswith("/") and not any(map(str.isspace, value))
    value = _relative(value) if whole else _PATH.sub(lambda found: _relative(found[0]), value)
    return value if len(value) <= MOST_CHARACTERS else f"{value[: MOST_CHARACTERS - 1]}…"


def _relative(path: str) -> str:
    """A path from the present folder, or the last part of one that lies elsewhere."""
    here = str(Path.cwd())
    if path.startswith(f"{here}/"):
        return path.removeprefix(f"{here}/")
    return PureWindowsPath(path).name
