"""Reads data sets that `save_to_disk` has written, and says which file of a damaged one is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cl_callbacks.data.file_reader import one_line

_MARKS = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves in a folder


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return any((folder / name).exists() for name in _MARKS)


def read_saved(folder: Path) -> Any:
    """Loads a saved ``Dataset`` or ``DatasetDict``.

    Raises:
        FileNotFoundError: a file of it is missing.
        ValueError: a file of it is damaged.
    """
    from datasets import load_from_disk

    try:
        return load_from_disk(str(folder))
    except MemoryError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} is no whole saved data set: {one_line(error)}") from error
    except Exception as error:
        file = next((file for file in sorted(folder.rglob("*")) if not _is_sound(file)), folder)
        raise ValueError(
            f"{file} of the saved data set is damaged: {one_line(error)}; save the data set anew"
        ) from error


def _is_sound(file: Path) -> bool:
    import pyarrow

    try:
        if file.suffix == ".json":
            json.loads(file.read_bytes())
        elif file.suffix == ".arrow":
            pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all()
    except (ValueError, OSError):
        return False
    return True
