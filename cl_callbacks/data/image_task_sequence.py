"""Sequences of image tasks that a configuration file can describe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import Unpack

from cl_callbacks.data.data_source import load_splits
from cl_callbacks.data.digits import digits
from cl_callbacks.data.image_tasks import as_is, image_tensors
from cl_callbacks.data.sequence_options import ImageOptions
from cl_callbacks.data.task_sequence import TaskSequence
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, NON_NEGATIVE, Bounds


class ImageTasks(TaskSequence):
    """A sequence of image tasks described by plain arguments, such as those of a configuration file.

    Exactly one of ``permutations``, ``degrees`` and ``label_groups`` defines the tasks.

    Args:
        data: ``"digits"`` for :func:`~cl_callbacks.data.digits`; else the name of a data set on the hub, a
            file or a folder (see :func:`~cl_callbacks.data.data_source.load_splits`), or loaded data.
        permutations: number of tasks, each of which has a fixed permutation of all pixels.
        degrees: rotation angle of each task, counter-clockwise.
        label_groups: the labels of each task, such as ``[[0, 1], [2, 3]]``.
        relabel: whether to number the labels within each group from 0 instead of keeping them.
        heads: whether each group has a head of its own, a :class:`~cl_callbacks.MultiHead`: labels are
            numbered within each group, and batches are ``(images, labels, tasks)``.
        eval_examples_per_label: maximum number of images for each label in validation and test, chosen at
            random; ``None`` for all.
        pad: number of zero pixels added on each side, before the transform.
        seed: seed of the permutations, of that choice, and of the division of data without splits.
        image_column: name of the column with the images.
        label_column: name of the column with the labels.
        config: name of the configuration, for a data set on the hub that has several.
        options: ``epochs_per_task``, ``batch_size`` and others of :class:`~cl_callbacks.TaskSequence`.

    Raises:
        ValueError: data or numbers from which the tasks cannot be built.
        FileNotFoundError: a path that does not exist.

    Example:
        >>> data = ImageTasks("digits", permutations=3, pad=4, epochs_per_task=10)
        >>> len(data), next(iter(data.train_dataloader()))[0].shape
        (3, torch.Size([32, 1, 16, 16]))
    """

    @checked(
        permutations=Bounds(least=1, most=100_000),
        eval_examples_per_label=AT_LEAST_ONE,
        pad=Bounds(least=0, most=1024),
        seed=NON_NEGATIVE,
    )
    def __init__(
        self,
        data: Any = "digits",
        *,
        permutations: int | None = None,
        degrees: Sequence[float] | None = None,
        label_groups: Sequence[Sequence[int]] | None = None,
        relabel: bool = False,
        heads: bool = False,
        eval_examples_per_label: int | None = None,
        pad: int = 0,
        seed: int = 0,
        image_column: str = "image",
        label_column: str = "label",
        config: str | None = None,
        **options: Unpack[ImageOptions],
    ) -> None:
        if sum(way is not None for way in (permutations, degrees, label_groups)) != 1:
            raise ValueError(
                "say in one way what the tasks are: permutations=10, degrees=[0, 30, 60] or "
                "label_groups=[[0, 1], [2, 3]]"
            )
        self.data, self.permutations, self.degrees = data, permutations, degrees
        if heads and label_groups is None:
            raise ValueError("heads=True is for label_groups: other tasks have the same labels")
        self.label_groups, self.relabel, self.heads = label_groups, relabel, heads
        self.eval_examples_per_label = eval_examples_per_label
        self.pad, self.seed, self.config = pad, seed, config
        self.image_column, self.label_column = image_column, label_column
        splits = load_splits(digits() if data == "digits" else data, config, seed=seed)
        among = None if label_groups is None else [label for group in label_groups for label in group]
        images = {
            name: image_tensors(split, image_column, label_column, splits.origins[name], among)
            for name, split in splits.items()
        }
        every: dict[str, Any] = {"eval_examples_per_label": eval_examples_per_label, "seed": seed, "pad": pad}
        if permutations is not None:
            sequence = TaskSequence.permuted(images, tasks=permutations, **every)
        elif degrees is not None:
            sequence = TaskSequence.rotated(images, degrees=degrees, **every)
        else:
            groups = label_groups or []
            sequence = TaskSequence.split_by_label(
                images, groups=groups, relabel=relabel, heads=heads, **every
            )
        self.num_labels = sequence.num_labels
        super().__init__(sequence.tasks, collate_fn=as_is, **options)
