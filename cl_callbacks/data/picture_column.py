"""Checks of a column of images, before any is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from os import SEEK_END
from typing import Any

import numpy as np

from cl_callbacks.data.column_checks import (
    Fault,
    is_list,
    kind_of,
    refuse_row_by_row,
    refuse_rows,
    require_column,
    stored,
    type_of,
)
from cl_callbacks.data.file_reader import one_line
from cl_callbacks.data.origin import Origin

_HEAD, _TAIL = 32, 12
"""Number of bytes at the beginning and at the end of a file that are looked at."""

_AT_ONCE = 256
"""Images whose bytes are looked at together."""

_DECODED, _BYTES_DECODED = 10_000, 2**24
"""So many images of a split are decoded in any case, and not more bytes of their files: seconds."""


def check_pictures(
    data: Any, column: str, origin: Origin, usable: Callable[[Any], Any] | None = None
) -> None:
    """Refuses a column that does not have an image in each row.

    The first images, up to 16 MiB of files, are decoded, and of the others those whose file does not begin
    and end as its format demands, as when a download has broken off.

    Args:
        data: a Hugging Face ``Dataset``.
        column: name of the column with ``Image`` features, or nested lists of numbers.
        origin: where the data are from.
        usable: raises a ``ValueError`` for a picture that cannot be used; it is asked about those that are
            decoded, and refuses numbers that are not whole. ``None`` if all can be.

    Raises:
        ValueError: with file, column and the first row at fault.
    """
    from datasets import Image
    from pyarrow import types

    require_column(data, column, origin)
    feature, kind = data.features[column], type_of(data, column)
    if isinstance(feature, Image):
        _check_files(data, column, origin, feature, usable)
        return
    inner, depth = kind, 0
    while is_list(inner):
        inner, depth = inner.value_type, depth + 1
    if depth == 0 or not (types.is_integer(inner) or types.is_floating(inner)):
        what = f"images, or lists of rows of numbers, are needed, and there are {kind_of(kind)}"
        raise ValueError(origin.fault(column, f"{what}; `cast_column({column!r}, Image())` reads paths"))
    if types.is_floating(inner) and usable is not None:
        what = "images that are no pictures have whole numbers from 0 to 255; scale them"
        raise ValueError(origin.fault(column, what))
    refuse_rows(data, [column], origin, lambda images: _number_faults(images, column))


def _check_files(
    data: Any, column: str, origin: Origin, feature: Any, usable: Callable[[Any], Any] | None
) -> None:
    from pyarrow import compute

    decoded = bytes_decoded = 0

    def faults(images: Any) -> Iterator[Fault]:
        nonlocal decoded, bytes_decoded
        yield Fault(images.is_null(), column, "there is no image")
        contents, paths = images.field("bytes"), images.field("path").to_pylist()
        heads = compute.binary_slice(contents, 0, _HEAD).to_pylist()
        tails = compute.binary_slice(contents, -_TAIL).to_pylist()
        ends = zip(heads, tails, compute.binary_length(contents).to_pylist(), strict=True)
        present = images.is_valid().to_pylist()
        for row, (own, path) in enumerate(zip(ends, paths, strict=True)):
            if not present[row]:
                continue
            head, tail, size = _ends_of(path) if own[2] is None else own
            in_any_case = decoded < _DECODED and bytes_decoded < _BYTES_DECODED
            if not in_any_case and _looks_whole(head, tail, size):
                continue
            decoded, bytes_decoded = decoded + 1, bytes_decoded + size
            try:
                picture = feature.decode_example(images[row].as_py())
                if usable is not None:
                    usable(picture)
            except Exception as error:
                named = f" {path}" if path else ""
                what = f"the image{named} cannot be read ({one_line(error)})"
                yield Fault(np.arange(len(images)) == row, column, what)

    refuse_row_by_row(data, [column], origin, faults, _AT_ONCE)


def path_of(data: Any, column: str, row: int) -> str:
    """The file of an image, if it has a name."""
    from datasets import Image

    return data.cast_column(column, Image(decode=False))[row][column]["path"] or ""


def _ends_of(path: str | None) -> tuple[bytes, bytes, int]:
    """Beginning, end and size of a file; nothing of one that is not there."""
    try:
        with open(path or "", "rb") as file:
            head = file.read(_HEAD)
            size = file.seek(0, SEEK_END)
            file.seek(max(0, size - _TAIL))
            return head, file.read(_TAIL), size
    except OSError:  # is said by what decodes it, which knows more kinds of paths
        return b"", b"", 0


def _looks_whole(head: bytes, tail: bytes, size: int) -> bool:
    """Whether a file begins and ends like a whole JPEG, PNG of at most 8 bits, GIF, WebP or BMP."""
    if head.startswith(b"\xff\xd8\xff"):
        return tail.endswith(b"\xff\xd9")
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return tail.endswith(b"\0\0\0\0IEND\xaeB`\x82") and head[24:25] != b"\x10"
    if head.startswith(b"GIF8"):
        return tail.endswith(b";")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return int.from_bytes(head[4:8], "little") + 8 == size
    return head.startswith(b"BM") and int.from_bytes(head[2:6], "little") == size


def _number_faults(images: Any, column: str) -> Iterator[Fault]:
    """Masks of nested lists that are no images of numbers."""
    from pyarrow import compute, float64, types

    yield Fault(images.is_null(), column, "there is no image")
    level, owners = images, np.arange(len(images))  # lists of one depth, and the image of each
    while is_list(level.type):
        if level is not images:
            lengths = compute.list_value_length(level).fill_null(0).to_numpy()
            first = np.searchsorted(owners, owners)  # of the same image
            yield Fault(
                _of(owners[lengths != lengths[first]], images), column, "its rows have several lengths"
            )
        owners = owners[compute.list_parent_indices(level).to_numpy()]
        level = stored(level.flatten())
        yield Fault(_of(owners[np.asarray(level.is_null())], images), column, "a number is missing")
    numbers = level.cast(float64(), safe=False).to_numpy(zero_copy_only=False)
    if types.is_integer(level.type):
        outside = (numbers < 0) | (numbers > 255)
        yield Fault(_of(owners[outside], images), column, "a number is not from 0 to 255")
    else:
        yield Fault(_of(owners[~np.isfinite(numbers)], images), column, "a number is not finite")


def _of(rows: np.ndarray, images: Any) -> np.ndarray:
    return np.bincount(rows, minlength=len(images)) > 0
