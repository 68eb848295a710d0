"""Checks of the columns that training will read, over Arrow's arrays."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cl_callbacks.data.origin import Origin


class Fault(NamedTuple):
    """A mask of the rows that have a fault, the column that it is in, what to say, and what to do."""

    mask: Any
    column: str
    what: str
    advice: str = ""


Faults = Callable[..., Iterable[Fault]]
"""Finds what may be wrong with some rows of arrays, one per column."""

_AT_ONCE = 10_000
"""Rows that are looked at together."""

_NONE_IN_CSV = "in CSV files an empty cell, NA, null, None and nan stand for none"


def none_in(origin: Origin) -> str:
    """Advice where a value is missing that may seem to be there."""
    return _NONE_IN_CSV if origin.kind == "csv" else ""


def in_some_rows(what: str, advice: str, count: int, total: int) -> str:
    """Says how many rows have a fault.

    Example:
        >>> in_some_rows("there is no text", "", 3, 10)
        'there is no text, in 3 of 10 rows'
    """
    return f"{what}, in {count} of {total} rows" + (f"; {advice}" if advice else "")


def require_column(data: Any, column: str, origin: Origin) -> None:
    """Refuses data without a column, or with several of its name.

    Raises:
        ValueError: with the columns that there are.
    """
    names = data.column_names
    if column not in names:
        raise ValueError(f"{origin}: the data have no column {column!r}; they have {names}")
    second = f"{column}.1" in names  # as pandas calls it
    if second and origin.kind == "csv" and Path(origin.files[0]).is_file():
        with open(origin.files[0], encoding="utf-8-sig", newline="") as file:
            count = next(csv.reader(file)).count(column)
        if count > 1:
            raise ValueError(
                origin.fault(column, f"there are {count} columns of this name: rename the others")
            )


def type_of(data: Any, column: str) -> Any:
    """Arrow's type of a column; of one that Hugging Face has extended, what it is stored as."""
    import pyarrow

    found = data.features[column]
    if type(found).__name__ == "Json":  # values of several kinds
        return pyarrow.struct([])
    kind = data.features.arrow_schema.field(column).type
    return getattr(kind, "storage_type", kind)


def is_text(kind: Any) -> bool:
    """Whether this is a type of texts."""
    from pyarrow import types

    views = getattr(types, "is_string_view", lambda kind: False)  # not before pyarrow 16
    return types.is_string(kind) or types.is_large_string(kind) or views(kind)


def is_list(kind: Any) -> bool:
    """Whether this is a type of lists."""
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def kind_of(kind: Any) -> str:
    """What values of a type are called in a sentence.

    Example:
        >>> import pyarrow
        >>> kind_of(pyarrow.list_(pyarrow.int64())), kind_of(pyarrow.binary())
        ('lists of whole numbers', 'binary values')
    """
    from pyarrow import types

    if is_list(kind):
        return f"lists of {kind_of(kind.value_type)}"
    if types.is_struct(kind):
        return "mappings" if kind.num_fields else "values of several kinds"
    if types.is_null(kind):
        return "no values"
    if is_text(kind):
        return "texts"
    if types.is_integer(kind):
        return "whole numbers"
    return "numbers" if types.is_floating(kind) else f"{kind} values"


def check_single_values(data: Any, column: str, origin: Origin, complete: bool) -> None:
    """Refuses a column whose rows hold lists or mappings, or, if it is to be complete, a row without a value.

    Raises:
        ValueError: with file, column and the first row at fault.
    """
    from pyarrow import compute, types

    require_column(data, column, origin)
    kind = type_of(data, column)
    if is_list(kind) or types.is_struct(kind):
        raise ValueError(
            origin.fault(column, f"one value in each row is needed, and there are {kind_of(kind)}")
        )
    names = getattr(data.features[column], "names", None)

    def faults(values: Any) -> Iterable[Fault]:
        if complete:
            yield Fault(values.is_null(nan_is_null=True), column, "there is no value", none_in(origin))
        if names is not None:
            outside = compute.or_(compute.less(values, 0), compute.greater_equal(values, len(names)))
            yield Fault(outside.fill_null(False), column, f"a number is none of the {len(names)} classes")

    refuse_rows(data, [column], origin, faults)


def refuse_rows(data: Any, columns: Sequence[str], origin: Origin, faults: Faults) -> None:
    """Refuses rows that have a fault in some columns.

    The stored table is looked at first, whatever rows of it were chosen: these are gathered, which takes long
    and copies, only if something is wrong somewhere.

    Args:
        data: a Hugging Face ``Dataset``.
        columns: the columns that are looked at.
        origin: where the data are from.
        faults: what may be wrong with arrays of these columns.

    Raises:
        ValueError: rows with a fault: their column and number, the first of them, and its file.
    """
    batches = data.data.table.select(list(columns)).to_batches(max_chunksize=_AT_ONCE)
    if any(np.any(fault.mask) for batch in batches for fault in faults(*_arrays(batch, columns))):
        refuse_row_by_row(data, columns, origin, faults, _AT_ONCE)


def refuse_row_by_row(
    data: Any, columns: Sequence[str], origin: Origin, faults: Faults, batch_size: int
) -> None:
    """Does the same without a look at rows of the stored table that were not chosen."""
    found: dict[tuple[str, str, str], tuple[int, int]] = {}  # number of rows and the first, by fault
    start = 0
    for table in data.select_columns(list(columns)).with_format("arrow").iter(batch_size):
        for batch in table.combine_chunks().to_batches():  # rows that were chosen are a chunk each
            for mask, column, what, advice in faults(*_arrays(batch, columns)):
                rows = np.flatnonzero(mask)
                if rows.size:
                    count, first = found.get((column, what, advice), (0, start + int(rows[0])))
                    found[column, what, advice] = count + len(rows), first
            start += len(batch)
    for (column, what, advice), (count, first) in found.items():
        raise ValueError(origin.fault(column, in_some_rows(what, advice, count, start), first))


def _arrays(batch: Any, columns: Sequence[str]) -> list[Any]:
    return [stored(batch[name]) for name in columns]


def stored(values: Any) -> Any:
    """The array behind one of an extension of Arrow's types."""
    return getattr(values, "storage", values)


def not_utf8(values: Any) -> np.ndarray:
    """Mask of texts whose bytes are not UTF-8, which Arrow accepts from a file."""
    import pyarrow

    try:
        values.validate(full=True)
    except pyarrow.ArrowInvalid:
        raw = values.cast(pyarrow.large_string()).view(pyarrow.large_binary())
        return np.array([not _decodes(text) for text in raw.to_pylist()])
    return np.zeros(len(values), dtype=bool)


def _decodes(text: bytes | None) -> bool:
    try:
        (text or b"").decode()
    except UnicodeDecodeError:
        return False
    return True
