"""Checks of texts and of words, before they are tokenised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cl_callbacks.data.column_checks import (
    Fault,
    is_list,
    is_text,
    kind_of,
    none_in,
    not_utf8,
    refuse_rows,
    require_column,
    type_of,
)
from cl_callbacks.data.origin import Origin


def check_texts(data: Any, column: str, origin: Origin) -> None:
    """Refuses a column that does not have one text in each row.

    Raises:
        ValueError: with file, column and the first row at fault.
    """
    require_column(data, column, origin)
    if not is_text(kind := type_of(data, column)):
        raise ValueError(origin.fault(column, f"texts are needed, and there are {kind_of(kind)}"))
    from_csv = origin.kind == "csv"

    def faults(texts: Any) -> Iterator[Fault]:
        yield Fault(texts.is_null(), column, "there is no text", none_in(origin))
        yield from text_faults(texts, column, from_csv)

    refuse_rows(data, [column], origin, faults)


def text_faults(texts: Any, column: str, from_csv: bool) -> Iterator[Fault]:
    """Masks of texts whose bytes are damaged."""
    from pyarrow import compute

    yield Fault(not_utf8(texts), column, "the text is not UTF-8", "write the file anew with this encoding")
    if from_csv:
        with_nul = compute.match_substring(texts, "\0").fill_null(False)
        yield Fault(with_nul, column, "the text has a NUL byte", "the file is damaged, or it is not UTF-8")


def check_words(data: Any, words: str, labels: str, origin: Origin) -> None:
    """Refuses columns that do not have a list of words in each row, and as many labels.

    Raises:
        ValueError: with file, column and the first row at fault.
    """
    for column in (words, labels):
        require_column(data, column, origin)
        if not is_list(kind := type_of(data, column)):
            wanted = f"a list with {'the words' if column == words else 'one label per word'}"
            raise ValueError(origin.fault(column, f"{wanted} is needed, and there are {kind_of(kind)}"))
    if not is_text(kind := type_of(data, words).value_type):
        raise ValueError(origin.fault(words, f"words are needed, and there are lists of {kind_of(kind)}"))

    def faults(texts: Any, own: Any) -> Iterator[Fault]:
        from pyarrow import compute

        yield Fault(texts.is_null(), words, "there is no list of words")
        yield Fault(own.is_null(), labels, "there is no list of labels")
        parents = compute.list_parent_indices(texts).to_numpy()
        inner = texts.flatten()
        yield Fault(_of_rows(inner.is_null(), parents, len(texts)), words, "a word is missing")
        for fault in text_faults(inner, words, from_csv=False):
            yield fault._replace(mask=_of_rows(fault.mask, parents, len(texts)))
        lengths = [compute.list_value_length(lists).fill_null(0).to_numpy() for lists in (texts, own)]
        yield Fault(lengths[0] != lengths[1], labels, "there are not as many labels as words")

    refuse_rows(data, [words, labels], origin, faults)


def _of_rows(mask: Any, parents: np.ndarray, rows: int) -> np.ndarray:
    """Mask of the lists that have a fault in one of their items."""
    return np.bincount(parents[np.asarray(mask)], minlength=rows) > 0


def check_tokens(data: Any, column: str, origin: Origin) -> None:
    """Refuses tokenised rows without a token, of which a mean would be NaN.

    Args:
        data: tokenised rows, in the order of the texts.
        column: the column that the texts were in.
        origin: where these are from.

    Raises:
        ValueError: with file, column and the first row at fault.
    """

    def faults(tokens: Any) -> Iterator[Fault]:
        from pyarrow import compute

        lengths = compute.list_value_length(tokens).to_numpy()
        yield Fault(lengths == 0, column, "the text has no tokens")

    refuse_rows(data, ["input_ids"], origin, faults)
