"""Names of any characters, made fit for keys, files and spreadsheets."""

from __future__ import annotations

from pathlib import Path

import pytest

from cl_callbacks.guards.safe_names import csv_cell, file_name, readable

NAMES = [
    "nul\0",
    "\ud800half",
    "../../etc/x",
    "a" * 5000,
    "é" * 5000,
    "..",
    ".",
    "",
    "C:\\x",
    "a\nb",
    "\U0001f600" * 99,
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:12])
def test_any_name_is_a_file_in_its_folder(name: str, tmp_path: Path) -> None:
    file = tmp_path / file_name(name, ".png")
    file.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.name.endswith(".png")
    assert len(file.name.encode()) <= 150


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:12])
def test_any_name_is_readable(name: str) -> None:
    found = readable(name)
    found.encode()
    assert "\0" not in found
    assert "\n" not in found
    assert len(found) <= 200


def test_different_names_stay_different() -> None:
    names = ["a\0", "a\1", "a_", "b" * 5000, "b" * 5001, "\ud800", "\ud801", "c?", "c*"]
    assert len(set(map(readable, names))) == len({file_name(name) for name in names}) == len(names)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1"])
def test_formulas_are_neutralised(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["digits", "a=1", "1-2", "", "task 0"])
def test_other_cells_are_left_alone(text: str) -> None:
    assert csv_cell(text) == text
