"""Sequences of image tasks for pretrained vision models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cl_callbacks.data.divided_tasks import DividedTasks
from cl_callbacks.data.processed_images import ProcessImages, image_processor, pictures
from cl_callbacks.data.task_division import Scenario


class VisionTasks(DividedTasks):
    """A sequence of image tasks, with batches for pretrained vision models of ``transformers``.

    Tasks are the values of a column, or groups of labels, or data sets given as a list. A batch is a dict of
    ``pixel_values`` ``(N, C, H, W)`` and ``labels`` ``(N,)``; with a head for each task also ``task_id``, an
    integer. Images are scaled and normalised by the model's image processor when the batch is collated, in
    ``num_workers`` processes, without torchvision. Grey images become RGB for models with three channels.

    Args:
        data: the name of a data set on the hub, a file, a folder of files or of images, a ``DatasetDict`` or
            a mapping of splits to files (see :func:`~cl_callbacks.data.data_source.load_splits`); or a list
            of these, one for each task.
        processor: the name of a model on the hub, or its folder, whose image processor is used.
        scenario: ``"task"``: a head for each task, and labels numbered from 0 within the task; ``"domain"``:
            the same labels in all tasks; ``"class"``: one head over the labels of all tasks.
        task_column: the column whose values are the tasks.
        task_order: values of that column in the order of the tasks; others are left out. Default: all, in
            the order of the class numbers or else sorted.
        label_groups: the labels of each task, or their names; a mapping also gives the tasks' names.
        image_column: name of the column with the images.
        label_column: name of the column with the labels.
        config: name of the configuration, for a data set on the hub that has several.
        splits: names that the splits ``train``, ``validation`` and ``test`` have in the data; those not
            listed are left out. Default: these same names, as far as they exist.
        examples_per_label: maximum number of training images for each label of a task, chosen at random;
            ``None`` for all.
        seed: seed of the choice of examples, and of the division of data without splits.
        epochs_per_task: as in :class:`~cl_callbacks.TaskSequence`.
        transition_batches: as in :class:`~cl_callbacks.TaskSequence`; must be 0 with a head for each task.
        shuffle_seed: as in :class:`~cl_callbacks.TaskSequence`.
        batch_size: batch size of training, per process.
        eval_batch_size: batch size of validation and test.
        num_workers: number of worker processes of each loader.

    Attributes:
        num_labels: number of outputs of each head: a list of one number, or of one per task.
        task_names: the tasks' column values, names or numbers.

    Raises:
        ValueError: data, columns or labels from which the tasks cannot be built; a model without an image
            processor that works with PIL.
        FileNotFoundError: a path that does not exist.
        ImportError: ``transformers`` is not installed.

    Example:
        >>> data = VisionTasks("cifar10", processor="google/vit-base-patch16-224-in21k",
        ...     image_column="img", label_groups=[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])  # doctest: +SKIP
        >>> data.num_labels  # doctest: +SKIP
        [5, 5]
    """

    def __init__(
        self,
        data: Any,
        *,
        processor: str,
        scenario: Scenario = "task",
        task_column: str | None = None,
        task_order: Sequence[str | int] | None = None,
        label_groups: Mapping[str, Sequence[str | int]] | Sequence[Sequence[str | int]] | None = None,
        image_column: str = "image",
        label_column: str = "label",
        config: str | None = None,
        splits: Mapping[str, str] | None = None,
        examples_per_label: int | None = None,
        seed: int = 0,
        epochs_per_task: int | None = None,
        transition_batches: int = 0,
        shuffle_seed: int | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        num_workers: int = 0,
    ) -> None:
        self.processor, self.image_column = processor, image_column
        super().__init__(
            data,
            prepare=lambda rows: pictures(rows, image_column, label_column),
            scenario=scenario,
            task_column=task_column,
            task_order=task_order,
            label_groups=label_groups,
            label_column=label_column,
            config=config,
            splits=splits,
            examples_per_label=examples_per_label,
            seed=seed,
            epochs_per_task=epochs_per_task,
            transition_batches=transition_batches,
            shuffle_seed=shuffle_seed,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            collate_fn=ProcessImages(image_processor(processor)),
        )
