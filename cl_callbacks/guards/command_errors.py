"""Turns errors of the command line into one sentence each."""

from __future__ import annotations

import difflib
import pkgutil
import re
import sysconfig
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType

from cl_callbacks.guards.signatures import nearest_argument

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_MISTAKES = (ValueError, TypeError, OSError, ImportError)
"""What a wrong argument, a missing file or a missing package raises."""

_NOT_BUILT = "Does not validate against any of the Union subtypes"
"""How jsonargparse begins where a class raised an error when it was built."""

_NO_SUCH_CLASS = re.compile(r"Expected a dot import path string: (?P<name>[^\s.]+)")
_NO_SUCH_MODULE = re.compile(r"class_path '(?P<path>[\w.]+)':\s+No module named '(?P<module>[\w.]+)'")
_NOT_IN_MODULE = re.compile(r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>\w+)'")
_NO_SUCH_ARGUMENT = re.compile(r"class_path '(?P<path>[\w.]+)':\s+Option '(?P<name>\w+)' is not accepted")
_NO_SUCH_KEY = re.compile(r"Option '(?P<name>[\w.+]+)' is not accepted")
_NO_SUCH_OPTION = re.compile(r"unrecognized arguments: --(?P<name>[\w.+-]+)")
_WRONG_VALUE = re.compile(r'Parser key "(?P<key>[\w.+]+)":\s*(?P<why>.*)', re.DOTALL)
_GIVEN = re.compile(r"Given value: (?P<value>.*)")
_TYPES = re.compile(r"Subtypes: [\[(](?P<types>.*)[\])]\n")


def in_one_sentence(message: str, classes: Collection[str], keys: Collection[str]) -> str:
    """What a message of jsonargparse of many lines says, with the nearest right name for a wrong one.

    Args:
        message: as its parser gives it.
        classes: names of the classes that may be named without their module.
        keys: names of all options, such as ``trainer.max_epochs``.

    Example:
        >>> in_one_sentence("unrecognized arguments: --trainer.max_epoch=3", [], ["trainer.max_epochs"])
        "there is no option 'trainer.max_epoch'; the nearest is 'trainer.max_epochs'"
    """
    if found := _NO_SUCH_ARGUMENT.search(message):
        nearest = nearest_argument(pkgutil.resolve_name(found["path"]), found["name"])
        return f"{_short(found['path'])} has no argument {found['name']!r}{_hint(nearest)}"
    if found := _NO_SUCH_CLASS.search(message):
        name = found["name"]
        own = f"one of your own needs its module, MODULE.{name}"
        return f"there is no class {name!r}{_nearest(name, classes)}; {own}"
    if found := _NO_SUCH_MODULE.search(message):
        return f"there is no module {found['module']!r} for the class {found['path']!r}"
    if found := _NOT_IN_MODULE.search(message):
        names = dir(pkgutil.resolve_name(found["module"]))
        return f"the module {found['module']!r} has no {found['name']!r}{_nearest(found['name'], names)}"
    if found := _NO_SUCH_KEY.search(message) or _NO_SUCH_OPTION.search(message):
        return f"there is no option {found['name']!r}{_nearest(found['name'], keys)}"
    if found := _WRONG_VALUE.search(message):
        return _wrong_value(found["key"], found["why"])
    return _joined(message)


def _wrong_value(key: str, why: str) -> str:
    while inner := _WRONG_VALUE.search(why):  # of an argument of an argument
        key, why = f"{key}: {inner['key']}", inner["why"]
    given, types = _GIVEN.search(why), _TYPES.search(why)
    if given and types:
        return f"{key} must be one of {_joined(types['types'])}; got {given['value']!r}"
    return f"{key}: {_joined(why)}"


def sentence_of(error: BaseException) -> str | None:
    """The message of an error that is a mistake in the arguments; ``None`` for one whose traceback is needed.

    That is an error of another kind, or one that passed through code that is neither installed nor of this
    package: a module of the user's.
    """
    while error.__cause__ is not None and str(error).startswith(_NOT_BUILT):
        error = error.__cause__
    mistake = isinstance(error, _MISTAKES) or type(error).__name__ == "MisconfigurationException"
    files = [Path(file) for file, _ in _frames(error.__traceback__)]
    known = (_PACKAGE in file.parents or str(file).startswith((*_INSTALLED, "<frozen")) for file in files)
    if not mistake or not all(known):
        return None
    made = next((name for _, name in _frames(error.__traceback__) if name is not None), None)
    text = _joined(str(error)) or type(error).__name__
    return text if made is None or made in text else f"{made}: {text}"


def _frames(traceback: TracebackType | None) -> Iterator[tuple[str, str | None]]:
    """File of each frame, and the class of this package that it was making, if any."""
    while traceback is not None:
        frame = traceback.tb_frame
        made = type(frame.f_locals.get("self"))
        making = frame.f_code.co_name == "__init__" and made.__module__.startswith(f"{_PACKAGE.name}.")
        yield frame.f_code.co_filename, made.__name__ if making else None
        traceback = traceback.tb_next


def _nearest(name: str, names: Collection[str]) -> str:
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return _hint(found[0] if found else None)


def _hint(nearest: str | None) -> str:
    return f"; the nearest is {nearest!r}" if nearest else ""


def _short(path: str) -> str:
    return path.rpartition(".")[2]


def _joined(text: str) -> str:
    return " ".join(text.split())
