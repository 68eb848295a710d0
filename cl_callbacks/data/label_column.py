"""The labels of one split: what they may be, and which occur."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np

from cl_callbacks.data.column_checks import (
    in_some_rows,
    is_list,
    is_text,
    kind_of,
    none_in,
    not_utf8,
    require_column,
    stored,
    type_of,
)
from cl_callbacks.data.origin import Origin
from cl_callbacks.data.task_rows import IGNORED
from cl_callbacks.guards.few import shown

NARROW, SPARSE = 1024, 10
"""A head may have this many outputs in any case, and this many for each label that occurs."""

TOO_LARGE = 2**53
"""From here on not every whole number can be told from the next as float64."""

_UNKNOWN = (
    "data sets of the hub write -1 where a label is not known: leave such rows out, or the split, by `splits`"
)


class LabelColumn:
    """The column with the labels of one split, as one array.

    Labels are whole numbers from 0 on, texts, or true and false, which are 1 and 0; numbers such as 2.0 are
    whole numbers. Only rows that are asked for must have one.

    Args:
        data: a Hugging Face ``Dataset``.
        column: name of the column.
        origin: where the data are from.
        words: whether a row has a list with one label for each word, of which -100 stands for none.

    Raises:
        ValueError: no such column, or values that cannot be labels.
    """

    def __init__(self, data: Any, column: str, origin: Origin, words: bool = False) -> None:
        from pyarrow import compute, types

        require_column(data, column, origin)
        self.column, self.origin, self.words = column, origin, words
        kind = type_of(data, column)
        if words and is_list(kind):
            kind = kind.value_type
        elif words or is_list(kind):
            wanted = "a list with one label per word" if words else "one label in each row"
            raise ValueError(origin.fault(column, f"{wanted} is needed, and there are {kind_of(kind)}"))
        number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
        self.texts = is_text(kind)
        if not (number or self.texts or types.is_null(kind)):
            raise ValueError(
                origin.fault(column, f"labels are whole numbers or texts, and there are {kind_of(kind)}")
            )
        feature = data.features[column]
        self.names: list[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
        values = stored(data.select_columns([column]).with_format("arrow")[:][column].combine_chunks())
        self.size = len(values)
        self.without_list = np.asarray(values.is_null()) if words else np.zeros(self.size, dtype=bool)
        self.rows = compute.list_parent_indices(values).to_numpy() if words else np.arange(self.size)
        self.values = values.flatten() if words else values
        self.faults = [fault for fault in self._faults() if fault[0].any()]

    def of(self, rows: Sequence[int]) -> set[Any]:
        """The labels that occur in some rows.

        Raises:
            ValueError: one of the rows has no label, or one that cannot be; with file, column and row.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        self._refuse_any(chosen[self.without_list[chosen]], "there is no list of labels", "", len(rows))
        if self.words:
            among = np.zeros(self.size, dtype=bool)
            among[chosen] = True
            chosen = np.flatnonzero(among[self.rows])
        for mask, what, advice in self.faults:
            wrong = chosen[mask[chosen]]
            if wrong.size:
                what = what.format(label=shown(self.values[int(wrong[0])].as_py()))
                self._refuse_any(np.unique(self.rows[wrong]), what, advice, len(rows))
        return self._distinct(self.values.take(chosen))

    def different(self) -> set[Any]:
        """All labels of the column, for a count of them; rows without one are passed over."""
        return self._distinct(self.values)

    def numbers(self) -> np.ndarray:
        """Labels of the rows as int64, -1 where there is none; not for texts."""
        return np.where(self._is_whole(found := self._as_float()), found, -1).astype(np.int64)

    def row_of(self, label: int) -> int | None:
        """The first row with a number as its label; not for texts."""
        found = self.rows[self._as_float() == label]
        return int(found[0]) if found.size else None

    def refuse(self, what: str, row: int | None = None) -> NoReturn:
        """Raises the error that says what is wrong, with file, column and row."""
        raise ValueError(self.origin.fault(self.column, what, row))

    def _refuse_any(self, wrong: np.ndarray, what: str, advice: str, total: int) -> None:
        if wrong.size:
            self.refuse(in_some_rows(what, advice, wrong.size, total), int(wrong[0]))

    def _distinct(self, values: Any) -> set[Any]:
        found = set(values.unique().to_pylist()) - {None}
        if self.texts:
            return found
        numbers = {int(label) for label in found if label == label and abs(label) < TOO_LARGE}
        return numbers - {IGNORED} if self.words else numbers

    def _as_float(self) -> np.ndarray:
        from pyarrow import float64

        return self.values.cast(float64(), safe=False).to_numpy(zero_copy_only=False)

    def _is_whole(self, numbers: np.ndarray) -> np.ndarray:
        return (np.abs(numbers) < TOO_LARGE) & (np.floor(numbers) == numbers)

    def _faults(self) -> Iterable[tuple[np.ndarray, str, str]]:
        """Masks of the values that cannot be labels, what to say of them, and what to do."""
        from pyarrow import compute

        advice = f"{IGNORED} stands for a word without one" if self.words else none_in(self.origin)
        if self.texts:
            yield np.asarray(self.values.is_null()), "there is no label", advice
            yield not_utf8(self.values), "the label is not UTF-8", "write the file anew with this encoding"
            yield np.asarray(compute.equal(self.values, "").fill_null(False)), "the label is empty", ""
            return
        numbers = self._as_float()
        known = ~np.isnan(numbers)
        yield ~known, "there is no label", advice
        yield known & ~self._is_whole(numbers), "{label} is no class", "labels are whole numbers or texts"
        below = known & (numbers < 0)
        if self.words:
            below &= numbers != IGNORED
        yield below & (numbers == -1), "the label is -1", _UNKNOWN
        yield below, "the label is {label}", "number them from 0 on"
        if self.names is not None:
            beyond = known & (numbers >= len(self.names))
            yield beyond, f"the label {{label}} is none of the {len(self.names)} classes", ""


def check_alike(columns: Sequence[LabelColumn]) -> None:
    """Refuses splits of which some have texts as labels and others numbers, or names in another order.

    A column without any label is passed over.

    Raises:
        ValueError: with both files and the column.
    """
    first, *others = [
        column for column in columns if column.values.null_count < len(column.values)
    ] or columns
    for other in others:
        if other.texts != first.texts:
            kinds = ["texts" if column.texts else "numbers" for column in (other, first)]
            other.refuse(f"the labels are {kinds[0]}, and {kinds[1]} in {first.origin}")
        if None not in (other.names, first.names) and other.names != first.names:
            other.refuse(f"the classes are {other.names}, and {first.names} in {first.origin}")


def check_width(labels: Iterable[Any], columns: Sequence[LabelColumn]) -> None:
    """Refuses whole numbers so large that most outputs of a head would stand for no label at all.

    Args:
        labels: the labels that are used.
        columns: where they are from; all labels that occur there are counted.

    Raises:
        ValueError: with file, column and a row of the largest label.
    """
    numbers = [label for label in labels if not isinstance(label, str)]
    if not numbers or any(column.names for column in columns):
        return
    largest, different = max(numbers), len(set().union(*(column.different() for column in columns)))
    if largest < max(NARROW, SPARSE * different):
        return
    for column in columns:
        row = column.row_of(largest)
        if row is not None:
            column.refuse(
                f"the largest label is {largest}, and there are {different} different ones, so that a head "
                f"would have {largest + 1} outputs; number the labels from 0 on, or write them as texts, "
                f"which are numbered in order",
                row,
            )
