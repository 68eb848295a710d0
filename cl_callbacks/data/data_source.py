"""Loads texts and images from the Hugging Face hub, files, a folder, or from memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

_READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
_SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves in a folder


def load_splits(
    source: Any, config: str | None = None, splits: Mapping[str, str] | None = None, seed: int = 0
) -> dict[str, Any]:
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

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a source without training data, or of an unsupported type.

    Example:
        >>> from datasets import Dataset
        >>> found = load_splits(Dataset.from_dict({"text": list("abcde")}))
        >>> {name: len(split) for name, split in found.items()}
        {'train': 4, 'test': 1}
    """
    names = dict(splits) if splits is not None else {s: s for s in ("train", "validation", "test")}
    found = _loaded(source, config, names.values())
    if hasattr(found, "train_test_split"):
        found = found.train_test_split(test_size=0.2, seed=seed)
    missing = [own for own in names.values() if own not in found]
    if names.get("train") not in found or (splits is not None and missing):
        wanted = missing if splits is not None else ["train"]
        raise ValueError(f"the data have no split {wanted}; they have {list(found)}: name them in `splits`")
    return {name: found[own] for name, own in names.items() if own in found}


def _loaded(source: Any, config: str | None, splits: Iterable[str]) -> Any:
    from datasets import load_dataset, load_from_disk

    if isinstance(source, Mapping):
        files = {name: value for name, value in source.items() if not hasattr(value, "column_names")}
        return _from_files(files) if files else source
    if hasattr(source, "train_test_split"):
        return source
    if not isinstance(source, str | PathLike):
        raise ValueError(
            f"data are the name of a data set, a file, a folder, a Dataset or a mapping of splits; "
            f"got a {type(source).__name__}"
        )
    path = Path(source)
    if path.is_dir():
        if any((path / name).exists() for name in _SAVED):
            return load_from_disk(str(path))
        files = _files_of(path, splits)
        return _from_files(files) if files else _imagefolder(path)
    if path.is_file():
        return _from_files({"train": path})["train"]
    if isinstance(source, PathLike) or path.is_absolute() or path.suffix in _READERS or source[0] in ".~":
        raise FileNotFoundError(f"there is no file or folder {source}")
    return load_dataset(source, config)


def _files_of(folder: Path, splits: Iterable[str]) -> dict[str, list[Path]]:
    """Files of each split, by file name: ``SPLIT.ext``, or parts ``SPLIT-….ext``."""
    files = sorted(file for file in folder.iterdir() if file.suffix in _READERS)
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


def _from_files(files: Mapping[str, Any]) -> Any:
    from datasets import load_dataset

    paths = {
        split: [str(value)] if isinstance(value, str | PathLike) else [str(part) for part in value]
        for split, value in files.items()
    }
    kinds = {_READERS.get(Path(path).suffix) for parts in paths.values() for path in parts}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        raise ValueError(f"expected files of one kind among {list(_READERS)}; got {paths}")
    return load_dataset(kind, data_files=paths)
