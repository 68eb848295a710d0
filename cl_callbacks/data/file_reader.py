"""Reads files of rows, and says of those that cannot be read which it is and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
_KINDS = {"parquet": "a Parquet file", "json": "JSON", "csv": "CSV"}
PANDAS_INDEX = "__index_level_0__"
"""The column that a CSV file without a name for its first column has."""

MORE_FIELDS = " has more fields in its rows than names in its first line"

_LFS = b"version https://git-lfs"


def read_files(files: Mapping[str, Any]) -> tuple[Any, dict[str, list[str]], str]:
    """Reads the files of each split.

    Args:
        files: a file, or a list of files, for each split; all of one kind.

    Returns:
        The ``DatasetDict``, the files of each split as lists, and what reads them, such as ``"csv"``.

    Raises:
        FileNotFoundError: a file that does not exist or is a folder.
        ValueError: files of several kinds, or one that cannot be read, with the reason.
    """
    from datasets import load_dataset

    paths = {split: _listed(split, value) for split, value in files.items()}
    kinds = {READERS.get(Path(path).suffix) for parts in paths.values() for path in parts}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        raise ValueError(f"expected files of one kind among {list(READERS)}; got {paths}")
    try:
        return load_dataset(kind, data_files=paths), paths, kind
    except MemoryError:
        raise
    except Exception as error:
        raise _explained(kind, paths, error) from error


def number_of_rows(kind: str, path: str) -> int:
    """Number of rows of one file, which is read for it."""
    return len(_alone(kind, path))


def one_line(error: BaseException) -> str:
    """The message of the error with which a chain of causes began, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__


def _listed(split: str, value: Any) -> list[str]:
    parts = [value] if isinstance(value, str | PathLike) else value
    if not isinstance(parts, Sequence) or not all(isinstance(part, str | PathLike) for part in parts):
        raise ValueError(
            f"split {split!r} is a file, a list of files or a Dataset; got {type(value).__name__}"
        )
    return [str(part) for part in parts]


def _alone(kind: str, path: str) -> Any:
    from datasets import load_dataset

    return load_dataset(kind, data_files=[path])["train"]


def _explained(kind: str, paths: Mapping[str, Sequence[str]], error: Exception) -> Exception:
    """The error that names the file: each is read once more, on its own."""
    features, without_rows = {}, []
    for path in (part for parts in paths.values() for part in parts):
        local = "://" not in path and not set(path) & set("*?[")
        if local and not Path(path).is_file():
            return FileNotFoundError(
                f"{path} is a folder, not a file" if Path(path).is_dir() else f"there is no file {path}"
            )
        try:
            features[path] = _alone(kind, path).features
        except Exception as own:
            reason = _reason(kind, path, own) if local else f"cannot be read: {one_line(own)}"
            if reason is None:
                without_rows.append(path)
                continue
            return (OSError if isinstance(own, OSError) else ValueError)(f"{path}{reason}")
        if kind == "csv" and PANDAS_INDEX in features[path]:
            return ValueError(f"{path}{MORE_FIELDS}")
    if without_rows:
        return ValueError(f"{without_rows[0]} has no rows")
    return ValueError(_difference(features) or f"{', '.join(features)} cannot be read: {one_line(error)}")


def _reason(kind: str, path: str, error: Exception) -> str | None:
    """Why a file cannot be read, to be said after its name; ``None`` if it only has no rows."""
    with open(path, "rb") as file:
        start = file.read(len(_LFS))
    if not start:
        return " is empty"
    if start == _LFS:
        return " is a pointer of Git LFS and not the file itself: `git lfs pull` fetches it"
    if kind != "parquet" and (line := _line_not_utf8(path)) is not None:
        return f" is not UTF-8 in line {line}: save it with this encoding"
    if "corresponds to no data" in str(error) or (kind == "parquet" and _has_no_rows(path)):
        return None
    if kind == "csv" and (fault := _column_at_fault(path)):
        return fault
    if "Multiple matches for FieldRef.Name(" in (reason := one_line(error)):
        name = reason.partition("FieldRef.Name(")[2].partition(")")[0]
        return f" has several columns {name!r}: rename all but one"
    return f" cannot be read as {_KINDS[kind]}: {reason}"


def _line_not_utf8(path: str) -> int | None:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return None


def _has_no_rows(path: str) -> bool:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import read_metadata

    try:
        return read_metadata(path).num_rows == 0
    except ArrowInvalid:  # is said of the file anyway
        return False


def _column_at_fault(path: str) -> str | None:
    """The column of a CSV file with a number that is too large, or with a text long after numbers."""
    import pandas
    import pyarrow

    try:
        parts = list(pandas.read_csv(path, chunksize=10_000))  # as `datasets` reads it
    except (ValueError, OverflowError):  # another fault, which is said of the file
        return None
    for column in parts[0].columns:
        try:
            pyarrow.array(parts[0][column], from_pandas=True)
        except (ValueError, TypeError, OverflowError, pyarrow.ArrowException) as error:
            return f", column {str(column)!r}: no type fits its values: {one_line(error)}"
        for part in parts[1:]:
            if pandas.api.types.is_numeric_dtype(parts[0][column]) and not (
                pandas.api.types.is_numeric_dtype(part[column])
            ):
                none = pandas.to_numeric(part[column], errors="coerce").isna() & part[column].notna()
                row = none.idxmax()
                return (
                    f", column {str(column)!r}: the first values are numbers, and row {row} (counted from 0) "
                    f"has {part[column][row]!r}"
                )
    return None


def _difference(features: Mapping[str, Any]) -> str | None:
    """How the columns of two files differ, if they do."""
    first, *others = features
    for path in others:
        if set(features[path]) != set(features[first]):
            return (
                f"{path} has the columns {list(features[path])}, and {first} has {list(features[first])}; "
                f"all files of a data set need the same, of the same types"
            )
        for column, feature in features[path].items():
            if feature != (other := features[first][column]):
                return (
                    f"{path}, column {column!r}: it holds {_type(feature)}, and {_type(other)} in {first}; "
                    f"all files of a data set need the same"
                )
    return None


def _type(feature: Any) -> str:
    return str(getattr(feature, "dtype", feature))
