"""The arguments that sequences of tasks have in common, declared once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from cl_callbacks.data.task_division import Scenario


class SequenceOptions(TypedDict, total=False):
    """Arguments of every sequence: see :class:`~cl_callbacks.TaskSequence`."""

    epochs_per_task: int | None
    transition_batches: int
    shuffle_seed: int | None
    batch_size: int
    num_workers: int


class ImageOptions(SequenceOptions, total=False):
    """Arguments of sequences of images in memory, too."""

    eval_batch_size: int


class DividedOptions(SequenceOptions, total=False):
    """Arguments of parts of Hugging Face data sets, too: see :class:`~.divided_tasks.DividedTasks`."""

    scenario: Scenario
    task_column: str | None
    task_order: Sequence[str | int] | None
    label_groups: Mapping[str, Sequence[str | int]] | Sequence[Sequence[str | int]] | None
    label_column: str
    config: str | None
    splits: Mapping[str, str] | None
    examples_per_label: int | None
    eval_examples_per_label: int | None
    seed: int
    eval_batch_size: int
