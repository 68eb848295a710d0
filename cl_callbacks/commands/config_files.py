"""Looks at configuration files for what their parser does not say: the file, the line, what would be lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from cl_callbacks.commands.nearest import local, nearest_path

if TYPE_CHECKING:
    from yaml import MappingNode, MarkedYAMLError, Node


def refuse_unreadable(file: Path) -> None:
    """Raises an error for a file that is not one mapping in YAML, with the line.

    Raises:
        ValueError: the file is missing, is not YAML, is empty or a list, or has a key twice, of which YAML
            would silently take the second.
    """
    for key, node in _pairs(_mapping(file), ""):
        names = [name.value for name, _ in node.value]
        twice = next((name for i, (name, _) in enumerate(node.value) if name.value in names[:i]), None)
        if twice is not None and twice.value != "<<":
            where, name = (
                f"{local(file)}, line {twice.start_mark.line + 1}",
                f"{key}.{twice.value}".lstrip("."),
            )
            raise ValueError(
                f"{where}: {name} is there twice, and the second would replace the first: join them"
            )


def refuse_lost_additions(files: Sequence[Path]) -> None:
    """Raises an error for files in the wrong order: one that adds to a list, before one that sets the list.

    Raises:
        ValueError: a file has ``key+:``, and a later one ``key:``, which would drop what was added.
    """
    added: dict[str, Path] = {}
    for file in files:
        for key in _keys(_mapping(file)):
            if key.endswith("+"):
                added[key[:-1]] = file
            elif key in added:
                first, second = local(added[key]), local(file)
                raise ValueError(
                    f"{second} sets {key} and would drop what {first} adds to it: give --config {second} "
                    f"before --config {first}"
                )


def replaced_callbacks(files: Sequence[Path]) -> list[str]:
    """A sentence for each file that puts callbacks of its own in the place of an earlier file's."""
    key = "trainer.callbacks"
    setting = [file for file in files if key in _keys(_mapping(file))]
    return [
        f"{local(file)} replaces the {key} of {local(before)}; `callbacks+:` would add to them"
        for before, file in pairwise(setting)
        if before != file
    ]


def _mapping(file: Path) -> MappingNode:
    """The mapping that a file holds."""
    import yaml  # comes with jsonargparse

    if not file.is_file():
        what = "is a folder" if file.is_dir() else f"does not exist{nearest_path(file)}"
        raise ValueError(f"the configuration file {local(file)!r} {what}")
    try:
        text = file.read_text(encoding="utf-8")
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except UnicodeDecodeError:
        raise ValueError(f"{local(file)} is not YAML: it is not even a text") from None
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{local(file)} is not YAML: {_problem(error, text)}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{local(file)} is not YAML: {error}") from None
    if len(documents) > 1:
        raise ValueError(
            f"{local(file)} holds {len(documents)} documents, separated by `---`: make each a file"
        )
    if not documents:
        raise ValueError(f"{local(file)} is empty: it must hold keys such as `trainer:`")
    (root,) = documents
    if not isinstance(root, yaml.MappingNode):
        what = "a list" if isinstance(root, yaml.SequenceNode) else f"{root.value!r}"
        raise ValueError(f"{local(file)} must hold keys such as `trainer:` and values; it holds {what}")
    return root


def _problem(error: MarkedYAMLError, text: str) -> str:
    mark, problem = error.problem_mark or error.context_mark, error.problem or error.context or str(error)
    if mark is None:
        return problem
    line = (text.splitlines() or [""])[min(mark.line, len(text.splitlines()) - 1)]
    spaces = "; indent with spaces, not tabs" if "\t" in line else ""
    return f"line {mark.line + 1}, {line.strip()[:80]!r}: {problem}{spaces}"


def _pairs(node: Node, key: str) -> Iterator[tuple[str, MappingNode]]:
    """Every mapping of a file, with the key that it is at."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        yield key, node
        for name, value in node.value:
            yield from _pairs(value, f"{key}.{name.value}".lstrip("."))
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _pairs(value, key)


def _keys(node: MappingNode, above: str = "") -> Iterator[str]:
    """Every key, with those above it, but for those within lists."""
    import yaml

    for name, value in node.value:
        yield f"{above}{name.value}"
        if isinstance(value, yaml.MappingNode):
            yield from _keys(value, f"{above}{name.value}.")
