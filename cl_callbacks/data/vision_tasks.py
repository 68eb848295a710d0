"""Sequences of image tasks for pretrained vision models."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from cl_callbacks.data.divided_tasks import DividedTasks
from cl_callbacks.data.picture_column import check_pictures
from cl_callbacks.data.processed_images import ProcessImages, image_processor, pictures
from cl_callbacks.data.sequence_options import DividedOptions
from cl_callbacks.guards.arguments import checked


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
        image_column: name of the column with the images.
        options: ``scenario``, ``task_column``, ``label_groups``, ``batch_size`` and others: see
            :class:`~cl_callbacks.data.divided_tasks.DividedTasks`.

    Attributes:
        num_labels: number of outputs of each head: a list of one number, or of one per task.
        task_names: the tasks' column values, names or numbers.

    Raises:
        ValueError: data, columns, images or labels from which the tasks cannot be built; a model without an
            image processor that works with PIL.
        FileNotFoundError: a path that does not exist.
        ImportError: ``transformers`` is not installed.

    Example:
        >>> data = VisionTasks("cifar10", processor="google/vit-base-patch16-224-in21k",
        ...     image_column="img", label_groups=[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])  # doctest: +SKIP
        >>> data.num_labels  # doctest: +SKIP
        [5, 5]
    """

    @checked()
    def __init__(
        self, data: Any, *, processor: str, image_column: str = "image", **options: Unpack[DividedOptions]
    ) -> None:
        self.processor, self.image_column = processor, image_column
        collate = ProcessImages(image_processor(processor))
        super().__init__(
            data,
            check=lambda rows, origin: check_pictures(rows, image_column, origin, collate.picture),
            prepare=lambda rows, origin: pictures(rows, image_column, self.label_column),
            collate_fn=collate,
            **options,
        )
