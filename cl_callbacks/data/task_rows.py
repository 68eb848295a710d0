"""Rows of one task, and the collation of rows that carry a task number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from cl_callbacks.data.file_reader import one_line
from cl_callbacks.data.origin import Origin
from cl_callbacks.data.picture_column import path_of

IGNORED = -100
"""Label of a token that has none."""


class TaskRows(Dataset[dict[str, Any]]):
    """The rows of one task, with labels replaced by output indices.

    Args:
        rows: a Hugging Face data set with a column ``labels``.
        numbers: output index of each label; ``None`` to keep the labels.
        task_id: task number that is added to each row, unless ``None``.
        origin: where the rows are from, for the error if one cannot be read; with their numbers there.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"input_ids": [[7, 8]], "labels": ["yes"]})
        >>> TaskRows(rows, {"no": 0, "yes": 1}, task_id=3)[0]
        {'input_ids': [7, 8], 'labels': 1, 'task_id': 3}
    """

    def __init__(
        self,
        rows: Any,
        numbers: Mapping[Any, int] | None,
        task_id: int | None = None,
        origin: tuple[Origin, Sequence[int]] | None = None,
    ) -> None:
        self.rows, self.numbers, self.task_id = rows, numbers, task_id
        self.origin = None if origin is None else (origin[0], np.asarray(origin[1]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        try:
            found = self.rows[list(indices)]
        except IndexError:  # ends an iteration
            raise
        except Exception as error:
            if (what := self._unreadable(indices)) is None:
                raise
            raise ValueError(what) from error
        rows = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
        for row in rows:
            if self.numbers is not None:
                row["labels"] = self._numbered(row["labels"])
            if self.task_id is not None:
                row["task_id"] = self.task_id
        return rows

    def _unreadable(self, indices: list[int]) -> str | None:
        """Says which row cannot be read, such as one with a damaged image."""
        if self.origin is None:
            return None
        origin, numbers = self.origin
        for index in indices:
            try:
                self.rows[index]
            except Exception as own:
                place = origin.at(int(numbers[index]))
                return f"{place}, cannot be read: {one_line(own)}{self._images(index)}"
        return None

    def _images(self, index: int) -> str:
        """The files of the images in a row."""
        from datasets import Image

        columns = [name for name, feature in self.rows.features.items() if isinstance(feature, Image)]
        paths = [path for name in columns if (path := path_of(self.rows, name, index))]
        return f" ({', '.join(paths)})" if paths else ""

    def _numbered(self, labels: Any) -> Any:
        assert self.numbers is not None
        if isinstance(labels, list):
            return [IGNORED if label in (None, IGNORED) else self.numbers[label] for label in labels]
        return self.numbers[labels]


def with_task(rows: list[dict[str, Any]], collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Any:
    """Collates rows of :class:`TaskRows` without ``task_id``, and adds it to the batch if they have one.

    Raises:
        ValueError: rows of several tasks.

    Example:
        >>> rows = [{"labels": 1, "task_id": 3}, {"labels": 0, "task_id": 3}]
        >>> with_task(rows, lambda inputs: {"labels": [row["labels"] for row in inputs]})
        {'labels': [1, 0], 'task_id': 3}
    """
    tasks = {row.get("task_id") for row in rows}
    if len(tasks) > 1:
        raise ValueError(
            f"a batch must come from one task where each has its own head, and here are "
            f"{sorted(tasks, key=str)}"
        )
    batch = collate([{name: value for name, value in row.items() if name != "task_id"} for row in rows])
    task = tasks.pop()
    return batch if task is None else batch | {"task_id": task}
