"""Turns the messages of jsonargparse, of many lines each, into one sentence."""

from __future__ import annotations

import ast
import pkgutil
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType

from cl_callbacks.commands.nearest import hint, local, nearest, nearest_class, nearest_path
from cl_callbacks.guards.signatures import nearest_argument

_NO_SUBCOMMAND = re.compile(r'expected "subcommand" to be one of')
_WRONG_SUBCOMMAND = re.compile(r"argument subcommand: invalid choice: '(?P<name>.*?)'")
_BEFORE_SUBCOMMAND = re.compile(r"is not accepted before subcommand '(?P<name>\w+)'")
_NO_VALUE = re.compile(r"argument (?:-\w/)?(?P<name>--[\w.+-]+): expected one argument")
_BELONGS_NOWHERE = re.compile(r"unrecognized arguments: (?P<name>[^-\s].*)")
_AMBIGUOUS = re.compile(r"ambiguous option: (?P<name>--[\w.+-]+).* could match (?P<options>.*)")
_MISSING = re.compile(r"the following arguments are required: (?P<names>[\w., ]+)")
_NOT_A_MAPPING = re.compile(r'Parser key "(?P<key>[\w.]+)":\s+Unable to load config \'(?P<value>.*)\'')
_NO_SUCH_FILE = re.compile(r"(?:File does not exist|Path is not a file|File is not readable): '(?P<name>.*)'")

_UNEXPECTED = re.compile(r"Unexpected config: ?(?P<value>.*)")
_NO_SUCH_CLASS = re.compile(r"Expected a dot import path string: (?P<name>\S+)")
_NO_CLASS_PATH = re.compile(r"Unexpected import path format: (?P<name>.+)")
_OF_ANOTHER_KIND = re.compile(
    r"Import path (?P<path>[\w.]+) does not correspond to a subclass of (?P<base>\w+)"
)
_NO_SUCH_MODULE = re.compile(r"class_path '(?P<path>[\w.]+)':\s+No module named '(?P<module>[\w.]+)'")
_NOT_IN_MODULE = re.compile(r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>\w+)'")
_NO_SUCH_ARGUMENT = re.compile(
    r"class_path '(?P<path>[\w.]+)':\s+Option '(?P<name>\w+)[\w.]*' is not accepted"
)
_NO_SUCH_KEY = re.compile(r"(?:Option|does not accept option) '(?P<name>[\w.+]+)'")
_NO_SUCH_OPTION = re.compile(r"unrecognized arguments: --(?P<name>[\w.+-]+)")
_KEY = re.compile(r'Parser key "(?P<key>[\w.+]+)":')
_CLASS = re.compile(r"class_path '(?P<path>[\w.]+)'")
_REQUIRED = re.compile(r'(?:arguments are required: |Key ")(?P<names>[\w., ]+)')
_EXPECTED = re.compile(r"Expected an? (?P<wanted>.+)\. Got value: (?P<value>.*)")
_SUBTYPES = re.compile(r"Subtypes: [\[(](?P<wanted>.*)[\])]\n(?:.*\n)*?.*Given value: (?P<value>.*)")
_FIRST = re.compile(r"Errors:\n\s*- (?P<reason>(?:.*\n)*?.*?)\n\s*(?:- |Given value type: )")
_END = re.compile(r"\n\s*(?:- |Given value type: )")
_PROBLEM = re.compile(
    r"^( *)- Problem with given class_path '(?P<path>[\w.]+)':\n(?:\1  .*\n)*", re.MULTILINE
)
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+")

_COMMAND = "cl-callbacks fit --config FILE"


def in_one_sentence(
    message: str, classes: Mapping[str, type], options: Collection[str], subcommands: Collection[str] = ()
) -> str:
    """What a message of jsonargparse says, with the nearest right name for a wrong one.

    Args:
        message: as its parser gives it.
        classes: those that may be named without their module, by name.
        options: names of all options, such as ``trainer.max_epochs``.
        subcommands: names of all subcommands.

    Example:
        >>> in_one_sentence("unrecognized arguments: --trainer.max_epoch=3", {}, ["trainer.max_epochs"])
        "there is no option 'trainer.max_epoch'; the nearest is 'trainer.max_epochs'"
    """
    message = _without_base(message)
    return (
        _wrong_command(message, subcommands)
        or _wrong_class(message, classes)
        or _wrong_option(message, options)
        or _wrong_value(message)
    )


def _wrong_command(message: str, subcommands: Collection[str]) -> str | None:
    """What is wrong with the order of words, whatever their meaning."""
    if _NO_SUBCOMMAND.search(message):
        return f"say what to do, one of {', '.join(subcommands)}, such as `{_COMMAND}`"
    if found := _WRONG_SUBCOMMAND.search(message):
        near = hint(nearest(found["name"], subcommands)) or f"; there are {', '.join(subcommands)}"
        return f"there is no subcommand {found['name']!r}{near}"
    if found := _BEFORE_SUBCOMMAND.search(message):
        return f"the subcommand comes first: `{_COMMAND.replace('fit', found['name'])}`"
    if found := _NO_VALUE.search(message):
        return f"the option {found['name']!r} needs a value"
    if found := _BELONGS_NOWHERE.search(message):
        return f"{found['name']!r} belongs to no option; each configuration file is given by --config FILE"
    if found := _AMBIGUOUS.search(message):
        return f"the option {found['name']!r} could be any of {found['options']}: write it out"
    if found := _MISSING.match(message):
        keys = sorted((key.rpartition(".")[2] for key in found["names"].split(", ")), reverse=True)
        options = " and ".join(f"--{key}" for key in keys)
        return f"{' and '.join(keys)} must be given, in a file by --config FILE or by {options}"
    return None


def _wrong_class(message: str, classes: Mapping[str, type]) -> str | None:
    """What is wrong with the name of a class, or with those of its arguments."""
    wanted = _wanted(message)
    if found := _NO_SUCH_ARGUMENT.search(message):
        kind = pkgutil.resolve_name(found["path"])
        if kind in wanted:  # which jsonargparse takes where a class path is missing
            return _not_a_class(kind.__name__, found["name"], message)
        near = nearest_argument(kind, found["name"])
        return f"{_short(found['path'])} has no argument {found['name']!r}{hint(near)}"
    if found := _NO_SUCH_CLASS.search(message):
        name = found["name"]
        fitting = {known: kind for known, kind in classes.items() if not wanted or issubclass(kind, wanted)}
        if name in classes.keys() - fitting.keys():
            return f"{name} is no {' or '.join(kind.__name__ for kind in wanted)}, which is needed here"
        own = f"one of your own needs its module, MODULE.{name}"
        return f"there is no class {name!r}{hint(nearest_class(name, fitting))}; {own}"
    if found := _OF_ANOTHER_KIND.search(message):
        return f"{found['path']} is no {found['base']}, which is needed here"
    if found := _NO_CLASS_PATH.search(message):
        return f"a class is named MODULE.CLASS, such as net.Net for Net in net.py; got {found['name']!r}"
    if found := _NO_SUCH_MODULE.search(message):
        module, path = found["module"], found["path"]
        if not path.startswith(f"{module}."):
            return f"there is no module {module!r}, which the module of {path!r} imports"
        near = nearest(module, (m.name for m in pkgutil.iter_modules()), cutoff=0.8)
        return f"there is no module {module!r} for the class {path!r}{hint(near)}"
    if found := _NOT_IN_MODULE.search(message):
        module, name = found["module"], found["name"]
        if name in classes:
            return f"the module {module!r} has no {name!r}; the name alone is enough: {name}"
        return f"the module {module!r} has no {name!r}{hint(nearest(name, _names_in(module)))}"
    return None


def _wanted(message: str) -> tuple[type, ...]:
    """The classes, of which that in a message should be one or be derived from one."""
    found = _SUBTYPES.search(message)
    named = _DOTTED.findall(found["wanted"]) if found else []
    loaded = [path for path in named if path.partition(".")[0] in sys.modules]
    return tuple(
        kind for path in loaded if isinstance(kind := _resolved(path), type) and kind.__module__ != "typing"
    )


def _without_base(message: str) -> str:
    """The message without what would be wrong with the wanted base itself, which jsonargparse tries, too."""
    problems = list(_PROBLEM.finditer(message))
    others = [p for p in problems[1:] if _resolved(p["path"]) in _wanted(message)]
    for problem in reversed(others):
        message = message[: problem.start()] + message[problem.end() :]
    return message


def _not_a_class(base: str, name: str, message: str) -> str:
    """What is wrong with a mapping that should be a ``class_path`` and ``init_args``."""
    found = _SUBTYPES.search(message)
    try:
        given = ast.literal_eval(found["value"]) if found else []
    except (ValueError, SyntaxError):
        given = []
    entries = given if isinstance(given, list) else [given]
    known = ("class_path", "init_args", "dict_kwargs")
    odd = [key for entry in entries if isinstance(entry, dict) for key in entry if key not in known]
    name = str(odd[0]) if odd else name
    near = hint(nearest(name, known[:2]))
    return f"a {base} is given by class_path and init_args, and {name!r} is neither{near}"


def _names_in(module: str) -> list[str]:
    made: ModuleType = pkgutil.resolve_name(module)
    return [*dir(made), *(m.name for m in pkgutil.iter_modules(getattr(made, "__path__", [])))]


def _resolved(path: str) -> object:
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return None


def _wrong_option(message: str, options: Collection[str]) -> str | None:
    """What is wrong with the name of an option or key, or with a file that one names."""
    if found := _NO_SUCH_KEY.search(message) or _NO_SUCH_OPTION.search(message):
        return f"there is no option {found['name']!r}{hint(nearest(found['name'], options))}"
    if found := _NOT_A_MAPPING.search(message):
        return f"{found['key']} must hold keys and values, or be a file that does; got {found['value']!r}"
    if found := _NO_SUCH_FILE.search(message):
        file = Path(found["name"])
        what = "is a folder" if file.is_dir() else f"does not exist{nearest_path(file)}"
        return f"the file {local(file)!r} {what}"
    if found := _UNEXPECTED.match(message):
        return f"a configuration must be a file with keys and values; got {found['value']!r}"
    return None


def _wrong_value(message: str) -> str:
    """What is said of the innermost argument, and whose it is; the first reason of several."""
    keys = list(_KEY.finditer(message))
    key, reason = (keys[-1]["key"], message[keys[-1].end() :]) if keys else ("", message)
    makers = _CLASS.findall(message, 0, keys[-1].start() if keys else len(message))
    found, first = _SUBTYPES.search(reason) or _EXPECTED.search(reason), _FIRST.search(reason)
    if first and not first["reason"].startswith("Expected a"):  # the type is right
        value, reason = found["value"] if found else "", first["reason"]
        if not makers and _DOTTED.fullmatch(value):  # a class path, whose module raised an error
            return f"the module of {value!r} cannot be imported: {_joined(reason)}"
        found, key, makers = None, "", makers or _CLASS.findall(reason)
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
    text = re.sub(r"(?<=\]), typing\.Literal\[", ", ", text).replace("], ", ", ")  # all choices as one list
    text = re.sub(r"typing\.Literal\[(.*?)(\]|$)", r"one of \1", text)
    return text if text.startswith("one of") else " or ".join(text.split(", "))


def _short(path: str) -> str:
    return path.rpartition(".")[2]


def _joined(text: str) -> str:
    return " ".join(text.split())
