"""Where the rows of a split come from, for sentences that say what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cl_callbacks.data.file_reader import number_of_rows


@dataclass(frozen=True)
class Division:
    """One part of data that were divided at random: the number of all rows, the seed, and the part."""

    rows: int
    seed: int
    part: str


@dataclass(frozen=True)
class Origin:
    """The files, or the data set and split, that rows were read from.

    Args:
        called: what to call them without a file, such as ``"data, split 'train'"``.
        files: the files, one after the other.
        kind: what has read them, such as ``"csv"``; ``None`` if they are not files of rows.
        division: part of the rows, where they were divided at random.

    Example:
        >>> Origin("data, split 'train'").fault("label", "there is no value", row=3)
        "data, split 'train', column 'label', row 3 (counted from 0): there is no value"
    """

    called: str
    files: tuple[str, ...] = ()
    kind: str | None = None
    division: Division | None = None

    def __str__(self) -> str:
        return ", ".join(self.files[:2]) + ", …" * (len(self.files) > 2) if self.files else self.called

    def fault(self, column: str, what: str, row: int | None = None) -> str:
        """Sentence that says what is wrong with a column, or with one of its rows."""
        if row is None:
            return f"{self}, column {column!r}: {what}"
        place, number = self._place(row)
        return f"{place}, column {column!r}, row {number} (counted from 0): {what}"

    def at(self, row: int) -> str:
        """The file and number of a row."""
        place, number = self._place(row)
        return f"{place}, row {number} (counted from 0)"

    def _place(self, row: int) -> tuple[str, int]:
        """The file of a row, and its number there. Files are counted for it if there are several."""
        if self.division is not None:
            row = _before(self.division, row)
        if len(self.files) == 1 or self.kind is None:
            return str(self), row
        for file in self.files[:-1]:
            rows = number_of_rows(self.kind, file)
            if row < rows:
                return file, row
            row -= rows
        return self.files[-1], row


def divided(data: Any, seed: int) -> Any:
    """Divides a data set at random, four fifths for ``"train"`` and one for ``"test"``."""
    return data.train_test_split(test_size=0.2, seed=seed)


def _before(division: Division, row: int) -> int:
    """Number of a row before the division, by dividing the numbers of the rows in the same way."""
    from datasets import Dataset

    numbers = Dataset.from_dict({"row": range(division.rows)})
    return divided(numbers, division.seed)[division.part][row]["row"]
