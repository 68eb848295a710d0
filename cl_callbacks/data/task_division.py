"""Divides the rows of a data set into tasks, and numbers the labels of each task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, get_args

import numpy as np

from cl_callbacks.data.column_checks import check_single_values
from cl_callbacks.data.data_source import Splits

Scenario = Literal["task", "domain", "class"]
SCENARIOS: tuple[str, ...] = get_args(Scenario)
RowsBySplit = dict[str, list[int]]
"""Row indices by split."""


def column_of(data: Any, column: str) -> list[Any]:
    """Returns all values of a column."""
    return data.with_format(None)[column][:]


def class_names(data: Any, column: str) -> list[str] | None:
    """Class names of a column of class numbers, or of lists of them; ``None`` without names."""
    feature = data.features[column]
    feature = getattr(feature, "feature", feature)
    return getattr(feature, "names", None)


def by_column(
    splits: Splits, column: str, order: Sequence[Any] | None
) -> tuple[list[Any], list[RowsBySplit]]:
    """Divides rows into tasks by the value in a column.

    Args:
        splits: Hugging Face data sets by split.
        column: name of the column.
        order: values, or their names, in the order of the tasks; default: in the order of the class numbers,
            or else sorted. Rows with other values are left out.

    Returns:
        The tasks' values, by name where they have one, and the row indices of each task.

    Raises:
        ValueError: a missing column or value, values that are lists, or other classes in another split.
    """
    for split, data in splits.items():
        check_single_values(data, column, splits.origins[split], complete=order is None)
    names = class_names(splits["train"], column)
    for split, data in splits.items():
        own = class_names(data, column)
        if None not in (names, own) and own != names:
            what = f"the classes are {own}, and {names} in {splits.origins['train']}"
            raise ValueError(splits.origins[split].fault(column, what))
    values = {split: column_of(data, column) for split, data in splits.items()}
    if names is not None:
        named: dict[Any, Any] = dict(enumerate(names))
        values = {split: [named.get(value) for value in found] for split, found in values.items()}
        order = None if order is None else [named.get(value, value) for value in order]
    present = set(values["train"]) - {None}
    if order is None:
        order = sorted(present) if names is None else [name for name in names if name in present]
    unknown = [value for value in order if value not in present]
    if unknown:
        raise ValueError(f"no training data has {column}={unknown}; there is {sorted(present)}")
    return list(order), [
        {split: [i for i, value in enumerate(found) if value == task] for split, found in values.items()}
        for task in order
    ]


def by_labels(
    splits: Mapping[str, Any], column: str, groups: Mapping[str, Sequence[Any]] | Sequence[Sequence[Any]]
) -> tuple[list[Any], list[RowsBySplit]]:
    """Divides rows into tasks by groups of labels.

    Args:
        splits: Hugging Face data sets by split, in which a label is one value.
        column: name of the column with the labels.
        groups: the labels of each task, or their names; a mapping also gives the names of the tasks.

    Returns:
        The tasks' names or numbers, and the row indices of each task.

    Raises:
        ValueError: a label that no training data have.
    """
    values = {split: column_of(data, column) for split, data in splits.items()}
    names = class_names(splits["train"], column) or []
    numbers = {name: number for number, name in enumerate(names)}
    tasks = groups if isinstance(groups, Mapping) else dict(enumerate(groups))
    present = set(values["train"])
    rows = []
    for task, group in tasks.items():
        wanted = {numbers.get(label, label) for label in group}
        unknown = [label for label in group if numbers.get(label, label) not in present]
        if unknown or not wanted:
            raise ValueError(f"task {task}: no training data has {column}={unknown or group}")
        rows.append(
            {
                split: [i for i, value in enumerate(found) if value in wanted]
                for split, found in values.items()
            }
        )
    return list(tasks), rows


def few_of_each(labels: Sequence[Any], rows: Sequence[int], most: int, seed: int) -> list[int]:
    """Chooses at most ``most`` rows of each label at random; the result is in the order of the data."""
    taken: dict[Any, int] = {}
    chosen = []
    for row in np.random.default_rng(seed).permutation(rows).tolist():
        taken[labels[row]] = taken.get(labels[row], 0) + 1
        if taken[labels[row]] <= most:
            chosen.append(row)
    return sorted(chosen)


def in_order(labels: Iterable[Any]) -> list[Any]:
    """Labels in order; texts that are all whole numbers, by these.

    Example:
        >>> in_order({"10", "9", "1"}), in_order({"10", "9", "b"})
        (['1', '9', '10'], ['10', '9', 'b'])
    """
    found = sorted(labels)
    if all(isinstance(label, str) and label.isdecimal() for label in found):
        found.sort(key=int)
    return found


def numbered(
    scenario: Scenario, labels: Sequence[set[Any]], names: Sequence[str] | None, separate: bool
) -> tuple[list[dict[Any, int]], list[int]]:
    """Assigns an output of the network to each label of each task.

    Args:
        scenario: ``"task"``: a head for each task, whose labels are numbered from 0; ``"domain"``: one head
            and the same labels in all tasks; ``"class"``: one head over the labels of all tasks.
        labels: set of labels of each task.
        names: names of the labels, where these are class numbers.
        separate: whether equal labels of different tasks are different classes.

    Returns:
        For each task the output index of each of its labels; and the number of outputs of each head.

    Raises:
        ValueError: a domain-incremental sequence of tasks that share no labels.

    Example:
        >>> numbered("task", [{4, 7}, {5, 6}], None, separate=False)
        ([{4: 0, 7: 1}, {5: 0, 6: 1}], [2, 2])
        >>> numbered("class", [{0, 1}, {0, 1}], None, separate=True)
        ([{0: 0, 1: 1}, {0: 2, 1: 3}], [4])
    """
    if scenario == "task" or (scenario == "class" and separate):
        sizes = [len(own) for own in labels]
        starts = [0] * len(sizes) if scenario == "task" else [0, *accumulate(sizes)][: len(sizes)]
        numbers = [
            {label: start + i for i, label in enumerate(in_order(own))}
            for start, own in zip(starts, labels, strict=True)
        ]
        return numbers, sizes if scenario == "task" else [sum(sizes)]
    everything = set().union(*labels)
    if scenario == "domain" and len(labels) > 1 and sum(map(len, labels)) == len(everything):
        raise ValueError(
            "scenario='domain' means the same labels in all tasks, and these tasks share none: use 'class' "
            "(one head over all labels) or 'task' (a head for each task)"
        )
    if all(isinstance(label, int) for label in everything):
        return [{label: label for label in everything}] * len(labels), [
            len(names or []) or max(everything) + 1
        ]
    return [{label: i for i, label in enumerate(in_order(everything))}] * len(labels), [len(everything)]
