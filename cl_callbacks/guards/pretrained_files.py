"""Loads pretrained models, tokenisers and image processors, with an error that says which was not found."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def from_pretrained(kind: Any, name: str, what: str, **options: Any) -> Any:
    """Calls ``kind.from_pretrained(name, **options)`` of transformers.

    Args:
        kind: a class of transformers.
        name: of the hub, or a folder.
        what: is loaded, such as ``"model"``, for the error.
        options: of ``from_pretrained``.

    Raises:
        FileNotFoundError: there is no such name or folder, or something is missing in it.
    """
    try:
        return kind.from_pretrained(name, **options)
    except OSError as error:
        reason = " ".join(str(error).split("\n")[0].split()).rstrip(". ")
        if Path(name).is_dir():
            raise FileNotFoundError(f"the folder {name!r} holds no whole {what}: {reason}.") from error
        raise FileNotFoundError(
            f"the {what} {name!r} could not be found: there is no such folder here, and the Hugging Face hub "
            f"has none of this name or could not be reached ({reason})."
        ) from error
