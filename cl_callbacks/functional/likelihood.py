r"""Which distribution of the labels the outputs of a network parametrise, told from the labels themselves.

======================  =====================================  ==========================================
likelihood              outputs                                labels
======================  =====================================  ==========================================
``categorical``         logits of classes, in a dimension of   integers, without that dimension or with 1
                        their own: the second, as torch's      in its place; or probabilities of the
                        ``cross_entropy`` has it, or the last  shape of the outputs that sum to 1 in it
``bernoulli``           logits of independent labels           targets from 0 to 1
``gaussian``            means, of unit variance                targets
======================  =====================================  ==========================================

Targets have the shape of the outputs, but for dimensions of size 1, or one of the two is flat, ``(N, D)``.
"""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Likelihood = Literal["categorical", "bernoulli", "gaussian"]
LIKELIHOODS: tuple[str, ...] = get_args(Likelihood)

IGNORED = -100
"""Label of a position without a target, as in :func:`torch.nn.functional.cross_entropy`."""

_ROWS, _NUMBERS = 4, 16
"""So many rows of logits do not sum to 1, and so many logits do not lie between 0 and 1, by chance."""


class Reading(NamedTuple):
    """How outputs and labels are read."""

    likelihood: Likelihood = "categorical"
    class_dim: int = -1
    """Dimension of the classes, 1 or -1; counts for ``"categorical"`` only."""
    ignore_index: int = IGNORED
    """Label of positions without a target; means nothing to ``"gaussian"``."""


def check_likelihood(likelihood: str | None, class_dim: int | None = None) -> None:
    """Raises a ``ValueError`` for an unknown likelihood or a dimension that cannot hold the classes."""
    if likelihood is not None and likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood={likelihood!r} is not one of {LIKELIHOODS}, or None")
    if class_dim not in (None, 1, -1):
        raise ValueError(
            f"class_dim={class_dim!r} is neither 1, the second dimension, as torch's cross_entropy has the "
            f"classes, nor -1, the last"
        )
    if class_dim is not None and likelihood in ("bernoulli", "gaussian"):
        raise ValueError(
            f"class_dim={class_dim} says where the classes are, and likelihood={likelihood!r} has none: "
            f"leave one of them out"
        )


def decide_reading(
    outputs: Tensor,
    labels: Tensor | None,
    *,
    likelihood: Likelihood | None = None,
    class_dim: int | None = None,
    ignore_index: int = IGNORED,
) -> Reading:
    """Decides how outputs and labels are read, or raises an error that names the argument to give.

    Args:
        outputs: of a batch, shape ``(N, ...)``.
        labels: of the same batch, if it has any.
        likelihood: what is known of it; ``None`` if only the labels tell: these are then classes.
        class_dim: 1 or -1 where the shape of the labels leaves it open; ``None`` if it tells.
        ignore_index: label of positions without a target.

    Raises:
        ValueError: labels that contradict the likelihood or the outputs, or leave the reading open.

    Example:
        >>> decide_reading(torch.zeros(2, 4, 7), torch.zeros(2, 7, dtype=torch.long))
        Reading(likelihood='categorical', class_dim=1, ignore_index=-100)
    """
    check_likelihood(likelihood, class_dim)
    if likelihood is None and labels is None:
        raise ValueError(
            f"without labels nothing tells how outputs {_shape(outputs)} are to be read: give "
            f"likelihood='categorical' for logits of classes, 'bernoulli' for logits of independent labels, "
            f"or 'gaussian' for a regression or a reconstruction; or let `outputs` return (outputs, labels)"
        )
    if likelihood is None and labels is not None and labels.is_floating_point():
        _refuse_numbers(outputs, labels)
    reading = Reading(likelihood or "categorical", ignore_index=ignore_index)
    if reading.likelihood == "categorical":
        reading = reading._replace(class_dim=_class_dim(outputs, labels, class_dim))
    read_labels(outputs, labels, reading)
    _refuse_probabilities(outputs, reading)
    return reading


def read_labels(outputs: Tensor, labels: Tensor | None, reading: Reading) -> tuple[Tensor, Tensor | None]:
    """Brings outputs and labels into one form, or raises a ``ValueError`` if they contradict the reading.

    Args:
        outputs: of a batch, shape ``(N, ...)``.
        labels: of the same batch, if it has any.
        reading: how they are read.

    Returns:
        Outputs, with the classes last; and labels: integer classes or probabilities for
        ``"categorical"``, targets of the outputs' shape otherwise, with -100 at positions without a target.

    Example:
        >>> read_labels(torch.zeros(1, 2, 3), torch.tensor([[0, 1, 9]]), Reading("categorical", 1, 9))[1]
        tensor([[   0,    1, -100]])
    """
    if reading.likelihood == "categorical":
        return _read_classes(outputs, labels, reading)
    return outputs, None if labels is None else _read_targets(outputs, labels, reading)


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


# -- classes ---------------------------------------------------------------------------------------


def _class_dim(outputs: Tensor, labels: Tensor | None, given: int | None) -> int:
    """The dimension of the classes, which is the given one or the only one to which the labels fit."""
    dims = _dims(outputs)
    if given is not None:
        return given if given in dims else -1
    sized = [d for d in dims if outputs.shape[d] > 1]
    fitting = [d for d in sized if labels is None or _fits(outputs, labels, d)]
    if len(fitting) > 1:
        because = "the batch has no labels" if labels is None else f"labels {_shape(labels)} fit both"
        raise ValueError(
            f"outputs {_shape(outputs)} may have their classes second, as torch's cross_entropy has them, or "
            f"last, and {because}: give class_dim=1 or class_dim=-1"
        )
    # Reading the labels says what is wrong with them if they fit nowhere.
    return (fitting or sized or [-1])[0]


def _dims(outputs: Tensor) -> tuple[int, ...]:
    """Dimensions in which the classes may be; in ``(N, C)`` the second is the last."""
    return (1, -1) if outputs.ndim > 2 else (-1,)


def _fits(outputs: Tensor, labels: Tensor, dim: int) -> bool:
    if labels.shape == outputs.shape:
        return is_distribution(labels.movedim(dim, -1))
    return labels.shape in _index_shapes(outputs, dim)


def _index_shapes(outputs: Tensor, dim: int) -> list[torch.Size]:
    """Shapes of integer labels: without the dimension of the classes, or with 1 in its place."""
    without, kept = list(outputs.shape), list(outputs.shape)
    del without[dim]
    kept[dim] = 1
    return [torch.Size(without), torch.Size(kept)]


def _read_classes(outputs: Tensor, labels: Tensor | None, reading: Reading) -> tuple[Tensor, Tensor | None]:
    dim = reading.class_dim
    if outputs.ndim < 2 or outputs.shape[dim] < 2:
        raise ValueError(
            f"a categorical likelihood reads logits of at least two classes, of shape (N, C), (N, ..., C) or "
            f"(N, C, ...), and got {_shape(outputs)}: give likelihood='bernoulli' if each number is the "
            f"logit of a label of 0 or 1, or likelihood='gaussian' for a regression"
        )
    last = outputs.movedim(dim, -1)
    if labels is None:
        return last, None
    if labels.shape == outputs.shape:
        soft = labels.movedim(dim, -1)
        if not is_distribution(soft):
            raise _are_no_classes(outputs, labels)
        return last, soft.to(outputs.dtype)
    if labels.shape not in _index_shapes(outputs, dim):
        raise _are_no_classes(outputs, labels) if are_targets(outputs, labels) else _misfit(outputs, labels)
    return last, _read_indices(labels.reshape(last.shape[:-1]), last.shape[-1], reading.ignore_index)


def _read_indices(labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    indices = labels.long()  # before comparing: -100 is 156 to unsigned bytes
    ignored = indices == ignore_index
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


def _refuse_numbers(outputs: Tensor, labels: Tensor) -> None:
    """Raises if labels in the shape of classes are floats, which may be the targets of a regression."""
    fits = any(labels.shape in _index_shapes(outputs, dim) for dim in _dims(outputs))
    if fits and not are_targets(outputs, labels):
        raise ValueError(
            f"labels {_shape(labels)} of {labels.dtype} beside outputs {_shape(outputs)} may be classes or "
            f"numbers: give likelihood='categorical' for classes; for a regression give "
            f"likelihood='gaussian', and let `outputs` return means of the shape of the targets"
        )


def _are_no_classes(outputs: Tensor, labels: Tensor) -> ValueError:
    remedies = ["likelihood='gaussian' for a regression or a reconstruction"]
    if not labels.is_floating_point() or bool(((labels >= 0) & (labels <= 1)).all()):
        remedies.insert(0, "likelihood='bernoulli' for independent labels of 0 or 1")
    return ValueError(
        f"labels {_shape(labels)} of {labels.dtype} contradict a softmax of outputs {_shape(outputs)}: give "
        f"{', or '.join(remedies)}. Labels of a softmax are classes, or probabilities that sum to 1"
    )


def _misfit(outputs: Tensor, labels: Tensor) -> ValueError:
    n, *rest = outputs.shape
    last, second = (n, *rest[:-1]), (n, *rest[1:])
    shapes = f"{last}" if last == second else f"{last} (classes last) or {second} (classes second)"
    return ValueError(
        f"labels {_shape(labels)} of {labels.dtype} do not fit logits {_shape(outputs)}: integers of shape "
        f"{shapes} are needed, or targets {_shape(outputs)} and likelihood='bernoulli' or 'gaussian'. If a "
        f"sample has one label, let `outputs` return one row of logits (N, C) for it, such as the mean over "
        f"its positions"
    )


# -- targets ---------------------------------------------------------------------------------------


def _read_targets(outputs: Tensor, labels: Tensor, reading: Reading) -> Tensor:
    if not are_targets(outputs, labels):
        raise ValueError(
            f"likelihood={reading.likelihood!r} reads targets of the shape of the outputs, "
            f"{_shape(outputs)}, and got labels {_shape(labels)} of {labels.dtype}: leave `likelihood` out "
            f"if they are classes; if they have no part in the loss, as in an autoencoder, let `outputs` "
            f"return the outputs alone"
        )
    targets = labels.reshape(outputs.shape).to(outputs.dtype)
    if reading.likelihood == "gaussian":
        return targets
    ignored = targets == reading.ignore_index
    if not bool(((targets >= 0) & (targets <= 1) | ignored).all()):
        worst = targets.masked_fill(ignored, 0.5).sub(0.5).abs().argmax()
        raise ValueError(
            f"label {targets.flatten()[worst].item():g} is not between 0 and 1, as those of "
            f"likelihood='bernoulli' are: give `ignore_index` if it marks what has no label, or "
            f"likelihood='gaussian' for a regression"
        )
    return targets.masked_fill(ignored, IGNORED)


# -- outputs ---------------------------------------------------------------------------------------


def _refuse_probabilities(outputs: Tensor, reading: Reading) -> None:
    if reading.likelihood == "categorical":
        last = outputs.movedim(reading.class_dim, -1)[:_NUMBERS]
        if last[..., 0].numel() >= _ROWS and is_distribution(last):
            raise ValueError(
                f"the outputs {_shape(outputs)} are probabilities that sum to 1, and logits are needed, "
                f"whose softmax they are: let `outputs` return their logarithm"
            )
    elif reading.likelihood == "bernoulli" and outputs.numel() >= _NUMBERS:
        between = ((outputs > 0) & (outputs < 1)).all()
        if between:
            warnings.warn(
                f"All outputs {_shape(outputs)} lie between 0 and 1, as probabilities do, and "
                f"likelihood='bernoulli' reads logits. If the network ends with a sigmoid, let `outputs` "
                f"return torch.logit of them.",
                stacklevel=2,
            )


def _shape(t: Tensor | torch.Size) -> str:
    return str(tuple(t.shape if isinstance(t, Tensor) else t))


def _without_ones(shape: torch.Size) -> list[int]:
    return [shape[0], *(n for n in shape[1:] if n != 1)]
