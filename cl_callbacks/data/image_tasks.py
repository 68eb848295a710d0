"""Image classification data as tensors, and the transforms that turn them into tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from cl_callbacks.data.file_reader import one_line
from cl_callbacks.data.label_column import LabelColumn, check_width
from cl_callbacks.data.origin import Origin
from cl_callbacks.data.picture_column import check_pictures, path_of

Transform = Callable[[Tensor], Tensor]

MEMORY = Origin("the data")


def image_tensors(
    data: Any,
    image_column: str = "image",
    label_column: str = "label",
    origin: Origin = MEMORY,
    among: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns images ``(N, C, H, W)``, float32 from 0 to 1, and integer labels ``(N,)``.

    Args:
        data: an ``(images, labels)`` pair of tensors or arrays, or a Hugging Face ``Dataset`` whose image
            column holds PIL images or nested lists. Integer images are divided by 255; ``(N, H, W)`` gets
            a channel, and ``(N, D)`` with square ``D`` becomes square images.
        image_column: name of the column with the images.
        label_column: name of the column with the labels.
        origin: where a ``Dataset`` is from, for messages.
        among: the labels that are used; rows with others need none. ``None`` for all.

    Raises:
        ValueError: a missing column, values that are not images, or labels that are not whole numbers from 0
            on.

    Example:
        >>> images, labels = image_tensors((torch.zeros(2, 8, 8), torch.tensor([0, 1])))
        >>> images.shape
        torch.Size([2, 1, 8, 8])
    """
    if isinstance(data, tuple | list) and len(data) == 2:
        images, labels = (torch.as_tensor(values) for values in data)
        if labels.is_floating_point() and not torch.equal(labels, labels.round()):
            raise ValueError("labels of images are whole numbers, and some of these are not")
    elif hasattr(data, "column_names"):
        images, labels = _from_rows(data, image_column, label_column, origin, among)
    else:
        raise ValueError(
            f"expected an (images, labels) pair or a Hugging Face Dataset, got {type(data).__name__}"
        )
    scale = 1.0 if images.is_floating_point() else 1 / 255
    images = images.to(torch.float32)
    if scale != 1.0 and images.numel():
        least, most = (int(number) for number in images.aminmax())
        if least < 0 or most > 255:
            raise ValueError(
                f"{origin}: whole numbers of images are from 0 to 255, and these from {least} to {most}; "
                f"scale them to floats from 0 to 1"
            )
    images = images * scale
    if images.ndim == 2:
        side = round(images.shape[1] ** 0.5)
        images = images.view(-1, side, side)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)  # PIL images have their channels last
    if images.ndim != 4 or len(images) != len(labels):
        raise ValueError(f"cannot read {tuple(images.shape)} as images of {len(labels)} labels")
    return images.contiguous(), labels.long()


def _from_rows(
    data: Any, image_column: str, label_column: str, origin: Origin, among: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    check_pictures(data, image_column, origin)
    column = LabelColumn(data, label_column, origin)
    if column.texts:
        column.refuse(f"the labels are texts; `class_encode_column({label_column!r})` numbers them")
    labels = column.numbers()
    used = np.arange(len(labels)) if among is None else np.flatnonzero(np.isin(labels, list(among)))
    check_width(column.of(used.tolist()), [column])
    rows = data.with_format("numpy")
    try:
        images = [np.asarray(image) for image in rows[image_column][:]]
    except Exception as error:
        if (what := _undecodable(rows, image_column, origin)) is None:
            raise
        raise ValueError(what) from error
    shapes = [image.shape for image in images]
    if other := next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None):
        what = f"an image has the shape {shapes[other]}, and the first has {shapes[0]}: all need the same"
        raise ValueError(origin.fault(image_column, what, other))
    return torch.from_numpy(np.stack(images)), torch.from_numpy(labels)


def _undecodable(rows: Any, column: str, origin: Origin) -> str | None:
    """Says which image cannot be decoded."""
    from datasets import Image

    for row in range(len(rows)):
        try:
            rows[row][column]
        except Exception as error:
            named = path_of(rows, column, row) if isinstance(rows.features[column], Image) else ""
            what = f"the image{' ' * bool(named)}{named} cannot be read ({one_line(error)})"
            return origin.fault(column, what, row)
    return None


def pad_images(images: Tensor, pad: int) -> Tensor:
    """Adds ``pad`` zero pixels on each of the four sides: ``(N, C, H, W)`` to ``(N, C, H+2p, W+2p)``."""
    return F.pad(images, (pad, pad, pad, pad))


class ImageTask(Dataset[tuple[Tensor, ...]]):
    """Images and labels with one transform, applied to whole batches as they are fetched.

    Args:
        images: images ``(N, C, H, W)``, whose memory all tasks share.
        labels: labels ``(N,)``.
        transform: function of a batch of images; ``None`` for the identity.
        task: number that every sample has as a third entry, ``(N,)`` in a batch; ``None`` for none.

    Example:
        >>> task = ImageTask(torch.ones(3, 1, 2, 2), torch.tensor([0, 1, 2]), lambda x: 2 * x)
        >>> task[1][0].sum(), task[1][1]
        (tensor(8.), tensor(1))
    """

    def __init__(
        self, images: Tensor, labels: Tensor, transform: Transform | None = None, task: int | None = None
    ) -> None:
        self.images, self.labels, self.transform, self.task = images, labels, transform, task

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(values[0] for values in self.__getitems__([index]))

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        images, labels = self.images[indices], self.labels[indices]
        images = images if self.transform is None else self.transform(images)
        return (images, labels) if self.task is None else (images, labels, torch.full_like(labels, self.task))


def as_is(batch: Any) -> Any:
    """Collate function for :class:`ImageTask`: returns the batch unchanged, since it is collated already."""
    return batch


class Permute:
    """One fixed permutation of all pixels, drawn from ``seed``."""

    def __init__(self, seed: int, pixels: int) -> None:
        self.order = torch.randperm(pixels, generator=torch.Generator().manual_seed(seed))

    def __call__(self, images: Tensor) -> Tensor:
        """Permutes the pixels of images ``(N, C, H, W)``, across channels too; keeps the shape."""
        return images.flatten(1)[:, self.order].view_as(images)


class Rotate:
    """A rotation by a fixed angle in degrees, counter-clockwise, with bilinear interpolation."""

    def __init__(self, degrees: float) -> None:
        angle = torch.tensor(degrees).deg2rad()
        cos, sin = angle.cos(), angle.sin()
        self.matrix = torch.stack([torch.stack([cos, -sin, cos * 0]), torch.stack([sin, cos, cos * 0])])

    def __call__(self, images: Tensor) -> Tensor:
        """Rotates images ``(N, C, H, W)``; pixels from outside the image are 0."""
        theta = self.matrix.to(images).expand(len(images), 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


def splits_of(dataset: Any, seed: int) -> Mapping[str, Any]:
    """Splits of a data set; one without splits is divided, four fifths for training and one for test."""
    if isinstance(dataset, Mapping):
        if "train" not in dataset:
            raise ValueError(f"the data have no split 'train'; they have {list(dataset)}")
        return dataset
    if hasattr(dataset, "train_test_split"):
        return dataset.train_test_split(test_size=0.2, seed=seed)
    images, labels = image_tensors(dataset)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    return {name: (images[i], labels[i]) for name, i in (("train", train), ("test", test))}
