"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from uuid import uuid4


@contextmanager
def whole_file(path: str | PathLike[str]) -> Iterator[Path]:
    """Context with another path to write to, whose file takes the place of ``path`` when all went well.

    If writing fails or is interrupted, an older file at ``path`` is left as it was, and nothing else remains.
    The folder must exist.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with whole_file(Path(folder, "a.txt")) as part:
        ...         _ = part.write_text("all of it")
        ...     os.listdir(folder)
        ['a.txt']
    """
    # In the same folder, since os.replace is atomic only within a file system; under a short name of its own,
    # since the file's may be as long as names can be, and another process may write it too.
    part = Path(path).with_name(f".{uuid4().hex}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
