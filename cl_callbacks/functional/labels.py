"""Labels of a batch beside the outputs of a network: classes, probabilities of classes, or targets."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position without a target, as in :func:`torch.nn.functional.cross_entropy`."""


def is_distribution(values: Tensor) -> bool:
    """Whether the last dimension holds probabilities: at least 0, and 1 in total."""
    values = values.detach().float()
    return bool((values >= 0).all() & ((values.sum(-1) - 1.0).abs() < 1e-2).all()) and values.numel() > 0


def are_targets(outputs: Tensor, labels: Tensor) -> bool:
    """Whether labels have the shape of the outputs, but for dimensions of size 1, or one of them is flat."""
    if labels.ndim == 0 or len(labels) != len(outputs) or labels.numel() != outputs.numel():
        return False
    flat = 2 in (labels.ndim, outputs.ndim)
    return flat or _without_ones(labels.shape) == _without_ones(outputs.shape)


def class_dims(outputs: Tensor) -> tuple[int, ...]:
    """Dimensions in which the classes may be; in ``(N, C)`` the second is the last."""
    return (1, -1) if outputs.ndim > 2 else (-1,)


def index_shapes(outputs: Tensor, dim: int) -> list[torch.Size]:
    """Shapes of integer labels: without the dimension of the classes, or with 1 in its place."""
    without, kept = list(outputs.shape), list(outputs.shape)
    del without[dim]
    kept[dim] = 1
    return [torch.Size(without), torch.Size(kept)]


def read_classes(
    outputs: Tensor, labels: Tensor | None, dim: int, ignore_index: int, checked: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Outputs with the classes of dimension ``dim`` last; labels as integers, or probabilities of that shape.

    Positions without a label have -100; and those with a wrong one, if it is not ``checked``.

    Raises:
        ValueError: outputs that are no logits of classes, labels that are none or do not fit.
    """
    if outputs.ndim < 2 or outputs.shape[dim] < 2:
        raise ValueError(
            f"a categorical likelihood reads logits of at least two classes, of shape (N, C), (N, ..., C) or "
            f"(N, C, ...), and got {shape_of(outputs)}: give likelihood='bernoulli' if each number is the "
            f"logit of a label of 0 or 1, or likelihood='gaussian' for a regression"
        )
    last = outputs.movedim(dim, -1)
    if labels is None:
        return last, None
    if labels.shape == outputs.shape:
        soft = labels.movedim(dim, -1)
        if checked and not is_distribution(soft):
            raise _are_no_classes(outputs, labels)
        return last, soft.to(outputs.dtype)
    if labels.shape not in index_shapes(outputs, dim):
        raise _are_no_classes(outputs, labels) if are_targets(outputs, labels) else _misfit(outputs, labels)
    return last, _read_indices(labels.reshape(last.shape[:-1]), last.shape[-1], ignore_index, checked)


def _read_indices(labels: Tensor, classes: int, ignore_index: int, checked: bool) -> Tensor:
    indices = labels.long()  # before comparing: -100 is 156 to unsigned bytes
    ignored = indices == ignore_index
    if not checked:
        return indices.masked_fill(ignored | (indices < 0) | (indices >= classes), IGNORED)
    if labels.is_floating_point() and bool((indices != labels).any()):
        raise ValueError(
            f"labels of {labels.dtype} that are no whole numbers are no classes: give likelihood='gaussian' "
            f"for a regression, whose outputs have the shape of the targets"
        )
    indices = indices.masked_fill(ignored, IGNORED)
    wrong = indices[((indices < 0) | (indices >= classes)) & ~ignored]
    if wrong.numel():
        number = int(wrong[0])
        raise ValueError(
            f"label {number} is none of {classes} classes, 0 to {classes - 1}: give ignore_index={number} "
            f"if it marks what has no label"
        )
    return indices


def _are_no_classes(outputs: Tensor, labels: Tensor) -> ValueError:
    remedies = ["likelihood='gaussian' for a regression or a reconstruction"]
    if not labels.is_floating_point() or bool(((labels >= 0) & (labels <= 1)).all()):
        remedies.insert(0, "likelihood='bernoulli' for independent labels of 0 or 1")
    return ValueError(
        f"labels {shape_of(labels)} of {labels.dtype} contradict a softmax of outputs {shape_of(outputs)}: "
        f"give {', or '.join(remedies)}. Labels of a softmax are classes, or probabilities that sum to 1"
    )


def _misfit(outputs: Tensor, labels: Tensor) -> ValueError:
    n, *rest = outputs.shape
    last, second = (n, *rest[:-1]), (n, *rest[1:])
    shapes = f"{last}" if last == second else f"{last} (classes last) or {second} (classes second)"
    return ValueError(
        f"labels {shape_of(labels)} of {labels.dtype} do not fit logits {shape_of(outputs)}: integers of "
        f"shape {shapes} are needed, or targets {shape_of(outputs)} and likelihood='bernoulli' or "
        f"'gaussian'. If a sample has one label, let `outputs` return one row of logits (N, C) for it, such "
        f"as the mean over its positions"
    )


def read_targets(
    outputs: Tensor, labels: Tensor, likelihood: str, ignore_index: int, checked: bool = True
) -> Tensor:
    """Labels in the shape and dtype of the outputs; -100 at positions without one, if they are from 0 to 1.

    Raises:
        ValueError: labels of another shape, or outside of 0 to 1 for ``likelihood="bernoulli"``.
    """
    if not are_targets(outputs, labels):
        raise ValueError(
            f"likelihood={likelihood!r} reads targets of the shape of the outputs, {shape_of(outputs)}, and "
            f"got labels {shape_of(labels)} of {labels.dtype}: leave `likelihood` out if they are classes; "
            f"if they have no part in the loss, as in an autoencoder, let `outputs` return the outputs alone"
        )
    targets = labels.reshape(outputs.shape).to(outputs.dtype)
    if likelihood == "gaussian":
        return targets
    ignored = targets == ignore_index
    if checked and not bool(((targets >= 0) & (targets <= 1) | ignored).all()):
        worst = targets.masked_fill(ignored, 0.5).sub(0.5).abs().argmax()
        raise ValueError(
            f"label {targets.flatten()[worst].item():g} is not between 0 and 1, as those of "
            f"likelihood='bernoulli' are: give `ignore_index` if it marks what has no label, or "
            f"likelihood='gaussian' for a regression"
        )
    return targets.masked_fill(ignored, IGNORED)


def shape_of(t: Tensor) -> str:
    """Shape of a tensor, for a message."""
    return str(tuple(t.shape))


def _without_ones(shape: torch.Size) -> list[int]:
    return [shape[0], *(n for n in shape[1:] if n != 1)]
