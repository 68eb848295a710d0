"""The name that was probably meant, for messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path


def nearest(name: str, names: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The nearest of some names, by letters of either case or by initials; ``None`` if none is near.

    Args:
        name: the wrong name.
        names: the right ones.
        cutoff: how much of the letters has to be the same, from 0 to 1.

    Example:
        >>> nearest("max_epoch", ["max_epochs", "max_steps"]), nearest("SI", ["SynapticIntelligence", "EWC"])
        ('max_epochs', 'SynapticIntelligence')
    """
    known = {name: name for name in names}
    letters = {_letters(name): name for name in known}
    initials = {"".join(filter(str.isupper, name)): name for name in known}
    if _letters(name) in letters:
        return letters[_letters(name)]
    if len(name) > 1 and name.upper() in initials:
        return initials[name.upper()]
    for given, right in ((name, known), (_letters(name), letters)):
        if found := difflib.get_close_matches(given, right, n=1, cutoff=cutoff):
            return right[found[0]]
    return None


def nearest_class(name: str, classes: Mapping[str, type]) -> str | None:
    """The nearest of some classes by its name, or else one whose description has the name as a word.

    Example:
        >>> from cl_callbacks import Distillation
        >>> nearest_class("LwF", {"Distillation": Distillation})
        'Distillation'
    """
    word = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)
    described = (known for known, kind in classes.items() if word.search(kind.__doc__ or ""))
    return nearest(name, classes) or next(described, None)


def nearest_path(path: Path) -> str:
    """Why there is no such file or folder, as the end of a sentence: what is there instead.

    Example:
        >>> nearest_path(Path("/no_such_folder/file.yaml"))
        "; there is no folder '/no_such_folder' either"
    """
    folder = path.parent
    if folder.is_dir():
        # Endings are alike in most names.
        return hint(nearest(path.name, (entry.name for entry in folder.iterdir()), cutoff=0.7), folder)
    if folder.parent.is_dir():
        near = nearest(folder.name, (entry.name for entry in folder.parent.iterdir() if entry.is_dir()))
        instead = hint(near, folder.parent) or " either"
        return f"; there is no folder {local(folder)!r}{instead}"
    return f"; there is no folder {local(folder)!r} either"


def local(path: Path) -> str:
    """A path as one would write it in the present folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def hint(found: str | None, folder: Path | None = None) -> str:
    """The end of a sentence that names what is nearest, if anything is.

    Example:
        >>> hint("strength"), hint(None)
        ("; the nearest is 'strength'", '')
    """
    return f"; the nearest is {(local(folder / found) if folder else found)!r}" if found else ""


def _letters(name: str) -> str:
    return name.replace("_", "").lower()
