"""Preprocessing of images for a pretrained model, and their collation into batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cl_callbacks.data.task_rows import with_task
from cl_callbacks.guards.optional import optional
from cl_callbacks.guards.pretrained_files import from_pretrained


def image_processor(name: str) -> Any:
    """Loads the image processor of a model, from the hub or a folder, in the variant that needs only PIL.

    Raises:
        ValueError: ``transformers`` has no such image processor for the model.
    """
    found = optional("transformers", "transformers").AutoImageProcessor
    try:
        return from_pretrained(found, name, "image processor", backend="pil")
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"transformers has no image processor for {name} that works with PIL alone: name a model whose "
            f"processor gives images of the same size and normalisation, or a folder that has its "
            f"preprocessor_config.json"
        ) from error


def pictures(data: Any, image_column: str, label_column: str) -> Any:
    """Reduces a data set to the columns ``image`` and ``labels``; images are decoded when a row is read.

    Args:
        data: a Hugging Face ``Dataset``.
        image_column: name of the column with PIL images, or nested lists of integers from 0 to 255.
        label_column: name of the column with the labels.
    """
    columns = {image_column: "image", label_column: "labels"}
    kept = data.with_format(None).select_columns(list(columns))
    return kept.rename_columns({old: new for old, new in columns.items() if old != new})


class ProcessImages:
    """Collates rows into a batch: ``pixel_values``, ``labels``, and ``task_id`` if rows have one.

    Images are processed when their batch is collated, in the ``num_workers`` processes, because storing
    processed images would take many times the space of their files.

    Args:
        processor: the model's image processor. Images become grey if it normalises one channel, else RGB.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        mean = getattr(processor, "image_mean", None)
        self.mode = "L" if isinstance(mean, list | tuple) and len(mean) == 1 else "RGB"

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the batch as a dict, with ``pixel_values`` of shape ``(N, C, H, W)``.

        Raises:
            ValueError: images of more than 8 bits per channel, whose range is unknown; rows of several tasks
                where each has its own head.
        """
        return with_task(rows, self._batch)

    def _batch(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        images = [self.picture(row["image"]) for row in rows]
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}

    def picture(self, image: Any) -> Any:
        """Returns an image as a picture with the channels of the model; refuses more than 8 bits."""
        from PIL import Image

        if not isinstance(image, Image.Image):
            values = np.asarray(image)
            if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
                raise ValueError("images that are no pictures have whole numbers from 0 to 255; scale them")
            image = Image.fromarray(values.astype(np.uint8))
        if image.mode[0] in "IF":
            raise ValueError(f"an image has mode {image.mode}, more than 8 bits: convert it to 8 bits")
        return image.convert(self.mode)
