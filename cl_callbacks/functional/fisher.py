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

Estimator = Literal["exact", "sampled", "empirical", "logits_reversal"]
Likelihood = Literal["categorical", "gaussian"]
ESTIMATORS: tuple[str, ...] = get_args(Estimator)
LIKELIHOODS: tuple[str, ...] = get_args(Likelihood)

IGNORED = -100
"""Label of a position without a target, as in :func:`torch.nn.functional.cross_entropy`."""


def check_fisher(estimator: str, likelihood: str) -> None:
    """Raises a ``ValueError`` for an unknown estimator or likelihood, or a pair that does not fit."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator={estimator!r} is not one of {ESTIMATORS}")
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood={likelihood!r} is not one of {LIKELIHOODS}")
    if likelihood == "gaussian" and estimator == "logits_reversal":
        raise ValueError("estimator='logits_reversal' is defined for likelihood='categorical' only")


def fisher_cotangents(
    outputs: Tensor,
    labels: Tensor | None = None,
    *,
    estimator: Estimator = "exact",
    likelihood: Likelihood = "categorical",
) -> Iterator[Tensor]:
    r"""Vectors whose squared pull-backs, summed, are each sample's contribution to the Fisher.

    With logits :math:`z`, probabilities :math:`p = \mathrm{softmax}(z)` and unit vectors :math:`e`:

    ===================  ==========================================  ===============================
    estimator            categorical                                 gaussian (unit variance)
    ===================  ==========================================  ===============================
    ``exact``            :math:`\sqrt{p_c}(e_c - p)`, each class c   :math:`e_d`, each dimension d
    ``sampled``          :math:`e_y - p,\ y \sim p`                  :math:`\epsilon \sim N(0, 1)`
    ``empirical``        :math:`e_y - p`, y the label                :math:`y - f`
    ``logits_reversal``  :math:`e_y - \mathrm{softmax}(-z)`          not defined
    ===================  ==========================================  ===============================

    Args:
        outputs: logits of shape ``(N, C)``, or ``(N, T, V)`` for token sequences, where one sample is
            one sequence; means of shape ``(N,)`` or ``(N, D)`` for ``likelihood="gaussian"``.
        labels: classes ``(N,)``, tokens ``(N, T)`` with -100 where there is no target, or targets of
            the shape of ``outputs`` for a Gaussian. ``empirical`` and ``logits_reversal`` need them;
            ``sampled`` reads only which positions are ignored.
        estimator: which expectation over labels is taken.
        likelihood: how the outputs parametrise the distribution of the labels.

    Yields:
        Tensors of the shape of ``outputs``: one per class (``exact``), otherwise one.

    Raises:
        ValueError: outputs or labels of a shape that the estimator cannot read.

    Example:
        >>> z = torch.zeros(1, 2)
        >>> [v.tolist() for v in fisher_cotangents(z, torch.tensor([1]), estimator="empirical")]
        [[[-0.5, 0.5]]]
    """
    outputs = outputs.detach()
    if likelihood == "gaussian":
        yield from _gaussian(outputs, labels, estimator)
        return
    _check_logits(outputs, estimator)
    if estimator == "exact":
        p = outputs.softmax(-1)
        for c in range(p.shape[-1]):
            v = -p
            v[:, c] += 1.0
            yield v * p[:, c, None].sqrt()
        return
    if estimator == "sampled":
        drawn = torch.distributions.Categorical(logits=outputs).sample()
        # An ignored position stays ignored: it is not part of the sample's likelihood.
        ignored = labels == IGNORED if _aligned(labels, outputs) else None
        labels = drawn if ignored is None else drawn.masked_fill(ignored, IGNORED)
    labels = _check_labels(labels, outputs, estimator)
    sign = -1.0 if estimator == "logits_reversal" else 1.0
    v = _one_hot(labels, outputs) - (sign * outputs).softmax(-1)
    yield v.masked_fill((labels == IGNORED).unsqueeze(-1), 0.0)


def sample_losses(outputs: Tensor, labels: Tensor | None) -> Tensor:
    """Loss of each sample, of shape ``(N,)``: cross-entropy of integer labels, summed over positions.

    For floating-point targets, of the shape of the outputs, it is half the squared error.

    Example:
        >>> sample_losses(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
        tensor([0.5000, 2.0000])
    """
    if labels is None:
        raise ValueError("the loss of a sample needs its label, and the batch has none")
    if labels.is_floating_point():
        if labels.numel() != outputs.numel():
            raise ValueError(f"targets {tuple(labels.shape)} do not fit outputs {tuple(outputs.shape)}")
        residual = labels.reshape(len(outputs), -1) - outputs.reshape(len(outputs), -1)
        return 0.5 * residual.square().sum(1)
    _check_logits(outputs, "empirical")
    labels = _check_labels(labels, outputs, "empirical")
    losses = F.cross_entropy(outputs.movedim(-1, 1), labels, ignore_index=IGNORED, reduction="none")
    return losses.reshape(len(losses), -1).sum(1)


def _gaussian(outputs: Tensor, targets: Tensor | None, estimator: str) -> Iterator[Tensor]:
    if estimator == "exact":
        for d in range(outputs[0].numel()):
            v = torch.zeros_like(outputs)
            v.view(len(v), -1)[:, d] = 1.0
            yield v
    elif estimator == "sampled":
        yield torch.randn_like(outputs)
    elif estimator == "empirical":
        if targets is None or targets.numel() != outputs.numel():
            got = "none" if targets is None else f"shape {tuple(targets.shape)}"
            raise ValueError(
                f"the empirical Fisher of a Gaussian needs targets of the shape of the outputs, "
                f"{tuple(outputs.shape)}, and got {got}; use estimator='exact', which needs none"
            )
        yield targets.reshape(outputs.shape).to(outputs) - outputs
    else:
        raise ValueError(f"estimator={estimator!r} is defined for likelihood='categorical' only")


def _check_logits(outputs: Tensor, estimator: str) -> None:
    if outputs.ndim not in (2, 3) or outputs.shape[-1] < 2:
        raise ValueError(
            f"a categorical likelihood reads logits of shape (N, C) or (N, T, V) with at least two "
            f"classes, and got {tuple(outputs.shape)}; a single binary logit z is the pair (0, z): "
            f"override `outputs` to return it, or use likelihood='gaussian' for a regression"
        )
    if estimator == "exact" and outputs.ndim == 3:
        raise ValueError(
            f"the exact Fisher of token sequences, logits {tuple(outputs.shape)}, would sum over all "
            f"sequences; use estimator='sampled' or 'empirical', which take a sequence as one sample"
        )


def _aligned(labels: Tensor | None, outputs: Tensor) -> bool:
    return labels is not None and labels.shape == outputs.shape[:-1]


def _check_labels(labels: Tensor | None, outputs: Tensor, estimator: str) -> Tensor:
    if labels is None:
        raise ValueError(
            f"estimator={estimator!r} needs labels and the batch has none; use estimator='exact' or "
            f"'sampled', or override `outputs` to return (outputs, labels)"
        )
    if not _aligned(labels, outputs) or labels.is_floating_point():
        raise ValueError(
            f"labels {tuple(labels.shape)} of {labels.dtype} do not fit logits "
            f"{tuple(outputs.shape)}: integers of shape {tuple(outputs.shape[:-1])} are needed"
        )
    return labels


def _one_hot(labels: Tensor, outputs: Tensor) -> Tensor:
    index = labels.masked_fill(labels == IGNORED, 0).unsqueeze(-1)
    return torch.zeros_like(outputs).scatter_(-1, index, 1.0)
