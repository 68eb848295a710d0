"""Data sets of `save_to_disk` that are damaged: the error names the file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cl_callbacks.data.data_source import load_splits
from tests.tiny_transformers import requests


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def no_json(path: Path) -> None:
    path.write_text("{")


@pytest.mark.parametrize(
    ("damage", "file", "error"),
    [
        (cut, "train/data-00000-of-00001.arrow", ValueError),
        (lambda path: path.write_bytes(b"x" * 500), "train/data-00000-of-00001.arrow", ValueError),
        (Path.unlink, "train/data-00000-of-00001.arrow", FileNotFoundError),
        (no_json, "train/state.json", ValueError),
        (no_json, "test/dataset_info.json", ValueError),
        (no_json, "dataset_dict.json", ValueError),
        (shutil.rmtree, "test", FileNotFoundError),
    ],
)
def test_the_damaged_file_is_named(
    tmp_path: Path, damage: Callable[[Path], None], file: str, error: type[Exception]
) -> None:
    requests().save_to_disk(tmp_path)
    damage(tmp_path / file)
    with pytest.raises(error, match="saved data set") as found:
        load_splits(tmp_path)
    assert str(tmp_path / file) in str(found.value)
    assert "\n" not in str(found.value)
