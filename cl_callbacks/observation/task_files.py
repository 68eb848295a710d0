"""Writes the task matrix to files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_callbacks.guards.safe_names import csv_cell
from cl_callbacks.guards.whole_file import whole_file
from cl_callbacks.observation.task_record import TaskRecord


def write_json(file: Path, record: TaskRecord, about: Mapping[str, Any]) -> None:
    """Writes the scores and results of a record as JSON, with further entries ``about``.

    ``matrix`` has the rows, ``tasks_learned`` their numbers; rows of many tasks are thinned out, and
    ``other_scores`` has what is known of the others: row, column and score of each. ``order`` is the column
    of each task, in the order of learning. What was not measured is ``null``.
    """
    numbers, rows = record.tasks_learned, record.table()
    results = {name: None if math.isnan(v) else v for name, v in record.results().items()}
    at = {loader: column for column, loader in enumerate(record.columns)}
    others = [
        (learned, at[loader], score)
        for learned, row in sorted(record.left_out.rows().items())
        for loader, score in row.items()
    ]
    found = {
        **about,
        "matrix": rows,
        "tasks_learned": numbers,
        "other_scores": others,
        "order": record.order,
        "results": results,
        "task_ends": record.ends,
    }
    with whole_file(file) as part:
        part.write_text(json.dumps(found), encoding="utf-8")


def write_csv(file: Path, record: TaskRecord, names: Sequence[str]) -> None:
    """Writes the rows of the matrix as CSV, below the ``names`` of the columns."""
    with whole_file(file) as part, part.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["tasks_learned", *map(csv_cell, names)])
        writer.writerows(
            [learned, *row] for learned, row in zip(record.tasks_learned, record.table(), strict=True)
        )
