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
_KEY = re.compile(r'Parser key "(?P<key>[\w.+]+)":')
_CLASS = re.compile(r"class_path '(?P<path>[\w.]+)'")
_REQUIRED = re.compile(r'(?:arguments are required: |Key ")(?P<names>[\w., ]+)')
_EXPECTED = re.compile(r"Expected an? (?P<wanted>.+)\. Got value: (?P<value>.*)")
_SUBTYPES = re.compile(r"Subtypes: [\[(](?P<wanted>.*)[\])]\n(?:.*\n)*?.*Given value: (?P<value>.*)")
_FIRST = re.compile(r"Errors:\n\s*- (?P<reason>(?:.*\n)*?.*?)\n\s*(?:- |Given value type: )")
_END = re.compile(r"\n\s*(?:- |Given value type: )")


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
    return _wrong_value(message)


def _wrong_value(message: str) -> str:
    """What is said of the innermost argument, and whose it is; the first reason of several."""
    keys = list(_KEY.finditer(message))
    key, reason = (keys[-1]["key"], message[keys[-1].end() :]) if keys else ("", message)
    makers = _CLASS.findall(message, 0, keys[-1].start() if keys else len(message))
    found, first = _SUBTYPES.search(reason) or _EXPECTED.search(reason), _FIRST.search(reason)
    if first and not first["reason"].startswith("Expected a"):  # the type is right
        found, reason = None, first["reason"]
        key, makers = "", makers or _CLASS.findall(reason)
        reason = reason.rpartition("':\n")[2]  # without: Problem with given class_path
    where = ": ".join(filter(None, (_short(makers[-1]) if makers else "", key)))
    if required := _REQUIRED.search(reason):
        return f"{where} needs a value for {required['names']}"
    if found and where:
        return f"{where} must be {_types(found['wanted'])}; got {found['value']!r}"
    return ": ".join(filter(None, (where, _joined(_END.split(reason)[0]))))


def _types(text: str) -> str:
    """Types as a user would name them."""
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("NoneType", "null")
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text)
    return text if text.startswith("one of") else " or ".join(text.split(", "))


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
