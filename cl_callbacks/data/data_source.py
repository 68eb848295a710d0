"""Loads texts and images from the Hugging Face hub, files, a folder, or from memory."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from cl_callbacks.data.file_reader import MORE_FIELDS, PANDAS_INDEX, READERS, one_line, read_files
from cl_callbacks.data.origin import Division, Origin, divided
from cl_callbacks.data.saved_reader import is_saved, read_saved

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


class Splits(dict[str, Any]):
    """Data sets by split. ``origins`` has where each is from, for messages."""

    def __init__(self, data: Mapping[str, Any], origins: Mapping[str, Origin]) -> None:
        super().__init__(data)
        self.origins = dict(origins)


class _Found(NamedTuple):
    """A data set or a mapping of splits, with the files of each split and what has read them."""

    data: Any
    files: Mapping[str, list[str]] = {}
    kind: str | None = None


def load_splits(
    source: Any,
    config: str | None = None,
    splits: Mapping[str, str] | None = None,
    seed: int = 0,
    called: str = "data",
) -> Splits:
    """Loads the splits ``"train"``, ``"validation"`` and ``"test"`` of a data set, as far as they exist.

    Args:
        source: the name of a data set on the hub; a parquet, JSON, JSON lines or CSV file; a folder with
            such files that are named after their splits (``train.parquet``, or in parts,
            ``train-00000-of-00002.parquet``), written by ``save_to_disk``, or with one folder of images per
            label (``cat/1.png`` or ``train/cat/1.png``, an ``imagefolder``); a mapping of split names to
            files or loaded data sets, such as a ``DatasetDict``; or a single ``Dataset``. Data without splits
            are divided at random, four fifths for training and one for test.
        config: name of the configuration, for a data set on the hub that has several.
        splits: names of the splits in the source, such as ``{"train": "train", "test": "dev"}``; those not
            listed are left out. Default: the same names.
        seed: seed of the division.
        called: what messages call a source that has no name.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a source without training data, a split without rows, a file that cannot be read, or a
            source of an unsupported type.

    Example:
        >>> from datasets import Dataset
        >>> found = load_splits(Dataset.from_dict({"text": list("abcde")}))
        >>> {name: len(split) for name, split in found.items()}
        {'train': 4, 'test': 1}
    """
    names = dict(splits) if splits is not None else {s: s for s in ("train", "validation", "test")}
    called = str(source) if isinstance(source, str | PathLike) else called
    data, files, kind = _loaded(source, config, names.values())
    origins: dict[str, Origin] = {}
    if hasattr(data, "train_test_split"):
        whole = Origin(called, tuple(files.get("train", ())), kind)
        if len(data) < 2:
            raise ValueError(f"{whole}: {len(data)} rows cannot be divided into training and test data")
        rows, data = len(data), divided(data, seed)
        origins = {part: Origin(called, whole.files, kind, Division(rows, seed, part)) for part in data}
    missing = [own for own in names.values() if own not in data]
    if names.get("train") not in data or (splits is not None and missing):
        wanted = missing if splits is not None else ["train"]
        raise ValueError(
            f"{called}: the data have no split {wanted}; they have {list(data)}: name them in `splits`"
        )
    chosen = {name: own for name, own in names.items() if own in data}
    for own in chosen.values():
        named = Origin(f"{called}, split {own!r}", tuple(files.get(own, ())), kind)
        _refuse_what_has_no_rows(data[own], origins.setdefault(own, named))
    return Splits(
        {name: data[own] for name, own in chosen.items()},
        {name: origins[own] for name, own in chosen.items()},
    )


def _refuse_what_has_no_rows(data: Any, origin: Origin) -> None:
    if not hasattr(data, "num_rows"):
        raise ValueError(
            f"{origin} is a {type(data).__name__}; a Dataset, whose rows have numbers, is needed"
        )
    if not data.num_rows:
        raise ValueError(f"{origin} has no rows: leave the split out by `splits`, or give it some")
    if origin.kind == "csv" and PANDAS_INDEX in data.column_names:
        raise ValueError(f"{origin}{MORE_FIELDS}")


def _loaded(source: Any, config: str | None, splits: Iterable[str]) -> _Found:
    if isinstance(source, Mapping):
        files = {name: value for name, value in source.items() if not hasattr(value, "column_names")}
        if not files:
            return _Found(source)
        read, paths, kind = read_files(files)
        return _Found({**source, **read}, paths, kind)
    if hasattr(source, "train_test_split"):
        return _Found(source)
    if not isinstance(source, str | PathLike):
        raise ValueError(
            f"data are the name of a data set, a file, a folder, a Dataset or a mapping of splits; "
            f"got a {type(source).__name__}"
        )
    path = Path(source)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # such as a name that is too long
        raise FileNotFoundError(f"{_short(source)} cannot be opened: {error.strerror}") from error
    if is_folder:
        return _from_folder(path, splits)
    if is_file:
        read, paths, kind = read_files({"train": path})
        return _Found(read["train"], paths, kind)
    if isinstance(source, PathLike) or path.is_absolute() or path.suffix in READERS or source[:1] in ".~":
        raise FileNotFoundError(f"there is no file or folder {_short(source)}{_nearest(path)}")
    return _Found(_from_hub(source, config))


def _from_hub(name: str, config: str | None) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(name, config)
    except OSError as error:
        raise FileNotFoundError(
            f"the data set {_short(name)} could not be found: there is no such file or folder here"
            f"{_nearest(Path(name))}, and the Hugging Face hub has none of this name or could not be reached "
            f"({one_line(error)})"
        ) from error


def _from_folder(folder: Path, splits: Iterable[str]) -> _Found:
    if is_saved(folder):
        data = read_saved(folder)
        parts = {"train": [str(folder)]} if hasattr(data, "num_rows") and not isinstance(data, dict) else {}
        return _Found(data, parts or {split: [str(folder / split)] for split in data})
    files = _files_of(folder, splits)
    return _Found(*read_files(files)) if files else _Found(_imagefolder(folder))


def _files_of(folder: Path, splits: Iterable[str]) -> dict[str, list[Path]]:
    """Files of each split, by file name: ``SPLIT.ext``, or parts ``SPLIT-….ext``."""
    files = sorted(file for file in folder.iterdir() if file.suffix in READERS)
    found = {
        split: [f for f in files if f.stem == split or f.stem.startswith(f"{split}-")] for split in splits
    }
    return {split: parts for split, parts in found.items() if parts}


def _imagefolder(folder: Path) -> Any:
    from datasets import load_dataset

    if not any(file.suffix.lower() in _PICTURES for file in folder.rglob("*")):
        raise ValueError(
            f"{folder} has no file of a split such as train.parquet (nor .json, .jsonl, .csv) and no images; "
            f"it has {sorted(file.name for file in folder.iterdir())[:10]}"
        )
    found = load_dataset("imagefolder", data_dir=str(folder))
    return found["train"] if set(found) == {"train"} else found


def _short(name: Any) -> str:
    return repr(str(name)) if len(str(name)) <= 200 else f"{str(name)[:100]!r}…"


def _nearest(path: Path) -> str:
    """The nearest name in the folder, or the first folder of the path that does not exist."""
    for parent in reversed(path.parents):
        if not parent.is_dir():
            return f"; there is no folder {str(parent)!r} either"
    found = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1)
    return f"; the nearest name there is {found[0]!r}" if found else ""
