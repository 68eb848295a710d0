"""Files that cannot be read: the error names the file, says why in one sentence, and keeps the cause."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from cl_callbacks.data.data_source import load_splits
from tests.packages import NEW_PANDAS

ROWS = [("pay my bill", 0), ("play a song", 1), ("stop the music", 0), ("my card now", 1)]
LINES = [f"{text},{label}" for text, label in ROWS]
JSON = [json.dumps({"text": text, "label": label}) for text, label in ROWS]
TABLE = pa.table({"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]})


def csv(*lines: str, head: str = "text,label", encoding: str = "utf-8", end: str = "\n") -> bytes:
    return "".join(line + end for line in (head, *lines)).encode(encoding)


def parquet(folder: Path, table: Any = TABLE, **options: Any) -> bytes:
    pq.write_table(table, folder / "whole", **options)
    return (folder / "whole").read_bytes()


def sound(kind: str, folder: Path) -> bytes:
    return {
        "csv": csv(*LINES),
        "jsonl": "\n".join(JSON).encode(),
        "json": f"[{','.join(JSON)}]".encode(),
    }.get(kind) or parquet(folder)


def no_page(folder: Path) -> bytes:
    whole = bytearray(parquet(folder, pa.table({"text": [os.urandom(8).hex() for _ in range(2000)]})))
    whole[8:200] = b"\xff" * 192
    return bytes(whole)


_DAMAGED: list[tuple[str, str, bytes | Callable[[Path], bytes], str]] = [
    ("latin-1", "csv", csv("café,0", *LINES, encoding="latin-1"), r"is not UTF-8 in line 2"),
    ("latin-1, late", "csv", csv(*LINES * 3000, "café,0", encoding="latin-1"), r"not UTF-8 in line 12002"),
    ("UTF-16", "csv", csv(*LINES, encoding="utf-16"), "is not UTF-8 in line 1"),
    ("no bytes", "csv", b"", "is empty$"),
    ("a header alone", "csv", csv(), "has no rows"),
    ("a row too long", "csv", csv(*LINES, "a,b,c"), "cannot be read as CSV: .* Expected 2 fields in line 6"),
    ("rows too long", "csv", csv(*(f"{line},7" for line in LINES)), "more fields in its rows than names"),
    ("an open quote", "csv", csv(*LINES, '"pay,1'), "cannot be read as CSV"),
    ("other columns", "csv", csv(*LINES, head="words,label"), r"the columns \['text', 'label'\], and "),
    ("a number of 30 digits", "csv", csv(*LINES, f"pay,1{'0' * 30}"), "column 'label': no type fits"),
    ("texts, late", "csv", csv(*LINES * 3000, "a,b"), r"column 'label': .* row 12000 .* has 'b'$"),
    ("cut", "jsonl", "\n".join(JSON).encode()[:-9], "cannot be read as JSON"),
    ("a page of HTML", "jsonl", b"<html>Not found</html>", "cannot be read as JSON"),
    ("no bytes", "json", b"", "is empty$"),
    ("no rows", "json", b"[]", "has no rows$"),
    ("no values", "jsonl", b'{"text": "pay", "label": null}\n' * 3, "'label': it holds int64, and null in"),
    ("no bytes", "parquet", b"", "is empty$"),
    ("cut", "parquet", lambda folder: parquet(folder)[:-50], "cannot be read as a Parquet file: "),
    ("random bytes", "parquet", os.urandom(500), "cannot be read as a Parquet file: "),
    ("a damaged page", "parquet", no_page, "cannot be read as a Parquet file: "),
    ("no rows", "parquet", lambda folder: parquet(folder, TABLE.slice(0, 0)), "has no rows$"),
    ("a pointer", "parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull`"),
    (
        "two columns of one name", "parquet",
        lambda folder: parquet(folder, pa.table([[1], [2]], names=["label", "label"])),
        "has several columns 'label'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        pytest.param(*c[1:], id=f"{c[1]}: {c[0]}", marks=NEW_PANDAS if "30 digits" in c[0] else ())
        for c in _DAMAGED
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, kind: str, content: bytes | Callable[[Path], bytes], said: str
) -> None:
    (tmp_path / f"train.{kind}").write_bytes(content if isinstance(content, bytes) else content(tmp_path))
    (tmp_path / f"test.{kind}").write_bytes(sound(kind, tmp_path))
    with pytest.raises(ValueError, match=said) as error:
        load_splits(tmp_path)
    assert str(tmp_path / f"train.{kind}") in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is not None


def test_a_damaged_part_is_told_from_the_others(tmp_path: Path) -> None:
    for name, content in [("train-0", parquet(tmp_path)), ("train-1", parquet(tmp_path)[:-50])]:
        (tmp_path / f"{name}.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"train-1\.parquet cannot be read"):
        load_splits(tmp_path)


def test_splits_of_other_types_are_told_by_column(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(csv(*LINES))
    (tmp_path / "test.csv").write_bytes(csv("pay,yes", "stop,no"))
    with pytest.raises(ValueError, match=r"test\.csv, column 'label': .*string.* int64 in .*train\.csv"):
        load_splits(tmp_path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.mkdir(), "is a folder, not a file"),
        (lambda path: path.symlink_to("gone"), "there is no file"),
    ],
)
def test_what_is_no_file(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    make(tmp_path / "train.csv")
    with pytest.raises(FileNotFoundError, match=said) as error:
        load_splits(tmp_path)
    assert str(tmp_path / "train.csv") in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(csv(*LINES))
    (tmp_path / "train.csv").chmod(0)
    with pytest.raises(OSError, match=r"train\.csv"):
        load_splits(tmp_path)


@pytest.mark.parametrize("content", [csv(*LINES, encoding="utf-8-sig"), csv(*LINES, end="\r\n")])
def test_files_of_other_systems_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.csv").write_bytes(content)
    train = load_splits(tmp_path)["train"]
    assert list(zip(train["text"], train["label"], strict=True)) == ROWS


def test_a_mapping_may_have_files_and_data_sets(tmp_path: Path) -> None:
    (tmp_path / "small.csv").write_bytes(csv(*LINES))
    found = load_splits({"train": Dataset.from_dict({"text": ["a"]}), "test": str(tmp_path / "small.csv")})
    assert {name: len(split) for name, split in found.items()} == {"train": 1, "test": 4}
    with pytest.raises(
        ValueError, match="split 'train' is a file, a list of files or a Dataset; got NoneType"
    ):
        load_splits({"train": None})
