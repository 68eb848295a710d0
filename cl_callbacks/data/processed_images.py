"""Images as a pretrained model wants them, and batches of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cl_callbacks.data.task_rows import with_task
from cl_callbacks.guards.optional import optional


def image_processor(name: str) -> Any:
    """The image processor of a model, from the hub or a folder, that works with PIL alone.

    Raises:
        ValueError: ``transformers`` has none for the model that does.
    """
    found = optional("transformers", "transformers").AutoImageProcessor
    try:
        return found.from_pretrained(name, backend="pil")
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"transformers has no image processor for {name} that works with PIL alone: name a model whose "
            f"processor gives images of the same size and normalisation, or a folder that has its "
            f"preprocessor_config.json"
        ) from error


def pictures(data: Any, image_column: str, label_column: str) -> Any:
    """A Hugging Face data set of images and ``labels`` alone; images are read when a row is asked for.

    Args:
        data: a ``Dataset``.
        image_column: of pictures, or of nested lists of whole numbers from 0 to 255.
        label_column: of the labels.

    Raises:
        ValueError: no such column.
    """
    columns = {image_column: "image", label_column: "labels"}
    for column in columns:
        if column not in data.column_names:
            raise ValueError(f"the data have no column {column!r}; they have {data.column_names}")
    kept = data.with_format(None).select_columns(list(columns))
    return kept.rename_columns({old: new for old, new in columns.items() if old != new})


class ProcessImages:
    """Makes a batch of rows: ``pixel_values`` as a model wants them, ``labels``, and the task's number.

    Processed images would take many times the space of their files, so that each batch is processed when it
    is made: ``num_workers`` share the work.

    Args:
        processor: of the model. Images are made grey if it normalises one channel, and else RGB.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        mean = getattr(processor, "image_mean", None)
        self.mode = "L" if isinstance(mean, list | tuple) and len(mean) == 1 else "RGB"

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch as a dict.

        Raises:
            ValueError: images of more than 8 bits a channel, whose range nobody knows; rows of several tasks
                where each has its own head.
        """
        return with_task(rows, self._batch)

    def _batch(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        images = [self._picture(row["image"]) for row in rows]
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}

    def _picture(self, image: Any) -> Any:
        from PIL import Image

        if not isinstance(image, Image.Image):
            values = np.asarray(image)
            if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
                raise ValueError("images that are no pictures have whole numbers from 0 to 255; scale them")
            image = Image.fromarray(values.astype(np.uint8))
        if image.mode[0] in "IF":
            raise ValueError(f"an image has mode {image.mode}, more than 8 bits: convert it to 8 bits")
        return image.convert(self.mode)
