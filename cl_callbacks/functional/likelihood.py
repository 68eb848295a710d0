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

from torch import Tensor

from cl_callbacks.functional.labels import (
    IGNORED,
    are_targets,
    class_dims,
    index_shapes,
    is_distribution,
    read_classes,
    read_targets,
    shape_of,
)

Likelihood = Literal["categorical", "bernoulli", "gaussian"]
LIKELIHOODS: tuple[str, ...] = get_args(Likelihood)

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
    if isinstance(class_dim, bool) or class_dim not in (None, 1, -1):
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
        >>> import torch
        >>> decide_reading(torch.zeros(2, 4, 7), torch.zeros(2, 7, dtype=torch.long))
        Reading(likelihood='categorical', class_dim=1, ignore_index=-100)
    """
    check_likelihood(likelihood, class_dim)
    if likelihood is None and labels is None:
        raise ValueError(
            f"without labels nothing tells how outputs {shape_of(outputs)} are to be read: give "
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


def read_labels(
    outputs: Tensor, labels: Tensor | None, reading: Reading, checked: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Brings outputs and labels into one form, or raises a ``ValueError`` if they contradict the reading.

    Args:
        outputs: of a batch, shape ``(N, ...)``.
        labels: of the same batch, if it has any.
        reading: how they are read.
        checked: whether to look at the values, for which the host waits for the device; else labels that are
            no class count as positions without a target.

    Returns:
        Outputs with the classes last, and labels. These are integer classes or probabilities for
        ``"categorical"``, targets of the outputs' shape otherwise, with -100 at positions without a target.

    Example:
        >>> import torch
        >>> read_labels(torch.zeros(1, 2, 3), torch.tensor([[0, 1, 9]]), Reading("categorical", 1, 9))[1]
        tensor([[   0,    1, -100]])
    """
    if reading.likelihood == "categorical":
        return read_classes(outputs, labels, reading.class_dim, reading.ignore_index, checked)
    if labels is None:
        return outputs, None
    return outputs, read_targets(outputs, labels, reading.likelihood, reading.ignore_index, checked)


def _class_dim(outputs: Tensor, labels: Tensor | None, given: int | None) -> int:
    """The dimension of the classes, which is the given one or the only one to which the labels fit."""
    dims = class_dims(outputs)
    if given is not None:
        return given if given in dims else -1
    sized = [d for d in dims if outputs.shape[d] > 1]
    fitting = [d for d in sized if labels is None or _fits(outputs, labels, d)]
    if len(fitting) > 1:
        because = "the batch has no labels" if labels is None else f"labels {shape_of(labels)} fit both"
        raise ValueError(
            f"outputs {shape_of(outputs)} may have their classes second, as torch's cross_entropy has them, "
            f"or last, and {because}: give class_dim=1 or class_dim=-1"
        )
    # Reading the labels says what is wrong with them if they fit nowhere.
    return (fitting or sized or [-1])[0]


def _fits(outputs: Tensor, labels: Tensor, dim: int) -> bool:
    if labels.shape == outputs.shape:
        return is_distribution(labels.movedim(dim, -1))
    return labels.shape in index_shapes(outputs, dim)


def _refuse_numbers(outputs: Tensor, labels: Tensor) -> None:
    """Raises if labels in the shape of classes are floats, which may be the targets of a regression."""
    fits = any(labels.shape in index_shapes(outputs, dim) for dim in class_dims(outputs))
    if fits and not are_targets(outputs, labels):
        raise ValueError(
            f"labels {shape_of(labels)} of {labels.dtype} beside outputs {shape_of(outputs)} may be classes "
            f"or numbers: give likelihood='categorical' for classes; for a regression give "
            f"likelihood='gaussian', and let `outputs` return means of the shape of the targets"
        )


def _refuse_probabilities(outputs: Tensor, reading: Reading) -> None:
    if reading.likelihood == "categorical":
        last = outputs.movedim(reading.class_dim, -1)[:_NUMBERS]
        if last[..., 0].numel() >= _ROWS and is_distribution(last):
            raise ValueError(
                f"the outputs {shape_of(outputs)} are probabilities that sum to 1, and logits are needed, "
                f"whose softmax they are: let `outputs` return their logarithm"
            )
    elif reading.likelihood == "bernoulli" and outputs.numel() >= _NUMBERS:
        between = ((outputs > 0) & (outputs < 1)).all()
        if between:
            warnings.warn(
                f"All outputs {shape_of(outputs)} lie between 0 and 1, as probabilities do, and "
                f"likelihood='bernoulli' reads logits. If the network ends with a sigmoid, let `outputs` "
                f"return torch.logit of them.",
                stacklevel=2,
            )
