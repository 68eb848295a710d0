r"""Fisher information of a network's output distribution, as vectors pulled back to its weights.

The diagonal Fisher information of synapse :math:`i` is a mean over samples of squared derivatives of
the log-likelihood. By the chain rule every estimator here has the same form,

.. math:: F_i = \frac1N \sum_n \sum_k \Bigl( \sum_j \frac{\partial f_j(x_n)}{\partial \theta_i}
          v^{(k)}_{nj} \Bigr)^2,

and differs only in the *cotangents* :math:`v^{(k)}_n = \partial \ell_k / \partial f(x_n)`. This file
holds those cotangents. Squares are taken per sample: the square of a batch-mean gradient is another
quantity, smaller by a factor of roughly the batch size.

Sources: Kirkpatrick et al. 2017 (arXiv 1612.00796); van de Ven 2025, "On the computation of the
Fisher information in continual learning"; logits reversal: arXiv 2603.18596.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from cl_callbacks.functional.labels import IGNORED, are_targets, class_dims, is_distribution
from cl_callbacks.functional.likelihood import (
    Likelihood,
    Reading,
    check_likelihood,
    decide_reading,
    read_labels,
)

Estimator = Literal["exact", "sampled", "empirical", "logits_reversal"]
ESTIMATORS: tuple[str, ...] = get_args(Estimator)
_MOST_BACKWARDS = 10_000


def check_fisher(estimator: str, likelihood: str | None, class_dim: int | None = None) -> None:
    """Raises a ``ValueError`` for an unknown estimator or likelihood, or arguments that do not fit."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator={estimator!r} is not one of {ESTIMATORS}")
    check_likelihood(likelihood, class_dim)
    if likelihood in ("bernoulli", "gaussian") and estimator == "logits_reversal":
        raise ValueError("estimator='logits_reversal' is defined for likelihood='categorical' only")


def fisher_cotangents(
    outputs: Tensor,
    labels: Tensor | None = None,
    *,
    estimator: Estimator = "exact",
    likelihood: Likelihood = "categorical",
    class_dim: int = -1,
    ignore_index: int = IGNORED,
) -> Iterator[Tensor]:
    r"""Vectors whose squared pull-backs, summed, are each sample's contribution to the Fisher.

    With logits :math:`z`, probabilities :math:`p = \mathrm{softmax}(z)`, or :math:`p = \sigma(z)` for
    ``bernoulli``, and unit vectors :math:`e`:

    ===================  ==================================  ================================  ============
    estimator            categorical                         bernoulli                         gaussian
    ===================  ==================================  ================================  ============
    ``exact``            :math:`\sqrt{p_c}(e_c - p)`         :math:`\sqrt{p_d(1 - p_d)} e_d`   :math:`e_d`
    ``sampled``          :math:`e_y - p`, y drawn from p     :math:`y - p`, y drawn from p     N(0, 1)
    ``empirical``        :math:`e_y - p`, y the label        :math:`y - p`, y the label        :math:`y - f`
    ``logits_reversal``  :math:`e_y - \mathrm{softmax}(-z)`  not defined                       not defined
    ===================  ==================================  ================================  ============

    ``exact`` yields one vector for each class c or output d, the others one vector.
    Labels that are probabilities themselves stand in the place of :math:`e_y`. Positions without a label are
    no part of a sample's likelihood: there the vectors are 0, whatever the estimator.

    Args:
        outputs: logits of shape ``(N, C)``, or of sequences and images ``(N, T, C)``, ``(N, C, H, W)`` and so
            on, where one sample is a whole sequence or image; or means ``(N, ...)``.
        labels: as :mod:`~cl_callbacks.functional.likelihood` describes them. ``empirical`` and
            ``logits_reversal`` need them; the others read only which positions are ignored.
        estimator: which expectation over labels is taken.
        likelihood: how the outputs parametrise the distribution of the labels.
        class_dim: dimension of the classes: 1 or -1.
        ignore_index: label of positions without a target.

    Yields:
        Tensors of the shape of ``outputs``: one per class or output (``exact``), otherwise one.

    Raises:
        ValueError: outputs or labels that contradict the likelihood, or that the estimator cannot read.

    Example:
        >>> z = torch.zeros(1, 2)
        >>> [v.tolist() for v in fisher_cotangents(z, torch.tensor([1]), estimator="empirical")]
        [[[-0.5, 0.5]]]
    """
    check_fisher(estimator, likelihood)
    reading = Reading(likelihood, class_dim, ignore_index)
    outputs, labels = read_labels(outputs.detach(), labels, reading)
    if labels is None and estimator in ("empirical", "logits_reversal"):
        raise ValueError(
            f"estimator={estimator!r} needs labels and the batch has none; use estimator='exact' or "
            f"'sampled', or let `outputs` return (outputs, labels)"
        )
    if estimator == "exact":
        _refuse_long(outputs, likelihood)
    if likelihood == "categorical":
        for vector in _categorical(outputs, labels, estimator):
            yield vector.movedim(-1, class_dim)
    elif likelihood == "bernoulli":
        yield from _bernoulli(outputs, labels, estimator)
    else:
        yield from _gaussian(outputs, labels, estimator)


def sample_losses(outputs: Tensor, labels: Tensor | None, reading: Reading | None = None) -> Tensor:
    """Loss of each sample, of shape ``(N,)``: cross-entropy of classes, summed over positions.

    For floating-point targets, of the shape of the outputs, it is half the squared error, unless they are
    probabilities of classes. It is computed in at least float32.

    Args:
        outputs: of a batch, shape ``(N, ...)``.
        labels: of the same batch.
        reading: how they are read, as :func:`reading_of_losses` has found for another batch. Then no value
            is looked at and the host does not wait for the device; labels that are none count as ignored.

    Example:
        >>> sample_losses(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
        tensor([0.5000, 2.0000])
    """
    checked = reading is None
    reading = reading_of_losses(outputs, labels) if reading is None else reading
    assert labels is not None
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    if reading.likelihood == "gaussian":
        residual = labels.reshape(len(outputs), -1) - outputs.reshape(len(outputs), -1)
        return 0.5 * residual.square().sum(1)
    logits, classes = read_labels(outputs, labels, reading, checked)
    assert classes is not None
    classes = classes.movedim(-1, 1) if classes.shape == logits.shape else classes
    losses = F.cross_entropy(logits.movedim(-1, 1), classes, ignore_index=IGNORED, reduction="none")
    return losses.reshape(len(losses), -1).sum(1)


def reading_of_losses(outputs: Tensor, labels: Tensor | None) -> Reading:
    """How :func:`sample_losses` reads a batch, for others of its kind.

    Example:
        >>> reading_of_losses(torch.zeros(2, 3), torch.tensor([0, 2])).likelihood
        'categorical'
    """
    if labels is None:
        raise ValueError("the loss of a sample needs its label, and the batch has none")
    if labels.is_floating_point() and are_targets(outputs, labels) and not _soft(outputs, labels):
        return Reading("gaussian")
    return decide_reading(outputs.detach(), labels)


def _soft(outputs: Tensor, labels: Tensor) -> bool:
    """Whether labels are probabilities of at least two classes."""
    if labels.shape != outputs.shape:
        return False
    return any(labels.shape[d] > 1 and is_distribution(labels.movedim(d, -1)) for d in class_dims(outputs))


def _refuse_long(outputs: Tensor, likelihood: str) -> None:
    """Raises for outputs whose exact Fisher takes a backward for each of too many numbers."""
    if likelihood == "categorical" and outputs.ndim > 2:
        what = f"logits {tuple(outputs.shape)}, with positions within a sample,"
    elif outputs[0].numel() > _MOST_BACKWARDS:
        what = f"outputs of {outputs[0].numel():,} numbers a sample"
    else:
        return
    raise ValueError(
        f"the exact Fisher of {what} would take one backward for every number; use estimator='sampled' or "
        f"'empirical', which take one for all numbers of a sample"
    )


def _categorical(outputs: Tensor, labels: Tensor | None, estimator: str) -> Iterator[Tensor]:
    """For logits with the classes last."""
    p = outputs.softmax(-1)
    classes = None if labels is None or labels.shape == outputs.shape else labels
    ignored = None if classes is None else (classes == IGNORED).unsqueeze(-1)
    if estimator == "exact":
        for c in range(p.shape[-1]):
            v = -p
            v[:, c] += 1.0
            yield _masked(v * p[:, c, None].sqrt(), ignored)
        return
    if estimator == "sampled":
        target = _one_hot(torch.distributions.Categorical(logits=outputs).sample(), p)
    elif classes is None:
        assert labels is not None
        target = labels
    else:
        target = _one_hot(classes.clamp(min=0), p)
    yield _masked(target - ((-outputs).softmax(-1) if estimator == "logits_reversal" else p), ignored)


def _bernoulli(outputs: Tensor, targets: Tensor | None, estimator: str) -> Iterator[Tensor]:
    p, ignored = outputs.sigmoid(), None if targets is None else targets == IGNORED
    if estimator == "exact":
        spread = _masked((p * (1.0 - p)).sqrt(), ignored)
        yield from (v * spread for v in _unit_vectors(outputs))
    elif estimator == "sampled":
        yield _masked(torch.bernoulli(p) - p, ignored)
    else:
        assert targets is not None
        yield _masked(targets - p, ignored)


def _gaussian(outputs: Tensor, targets: Tensor | None, estimator: str) -> Iterator[Tensor]:
    if estimator == "exact":
        yield from _unit_vectors(outputs)
    elif estimator == "sampled":
        yield torch.randn_like(outputs)
    else:
        assert targets is not None
        yield targets - outputs


def _unit_vectors(outputs: Tensor) -> Iterator[Tensor]:
    """For each number of a sample's outputs, a tensor of their shape that is 1 there."""
    for d in range(outputs[0].numel()):
        v = torch.zeros(len(outputs), outputs[0].numel(), dtype=outputs.dtype, device=outputs.device)
        v[:, d] = 1.0
        yield v.view(outputs.shape)


def _one_hot(classes: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).scatter_(-1, classes.unsqueeze(-1), 1.0)


def _masked(vector: Tensor, ignored: Tensor | None) -> Tensor:
    return vector if ignored is None else vector.masked_fill(ignored, 0.0)
