"""Computes the diagonal Fisher information of a network in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cl_callbacks.functional.fisher import Estimator, Likelihood, check_fisher, fisher_cotangents
from cl_callbacks.gradients.model_outputs import model_outputs
from cl_callbacks.gradients.modes import evaluation_mode
from cl_callbacks.gradients.per_sample import PerSampleGradients
from cl_callbacks.tensors.containers import moved

Outputs = Callable[[nn.Module, Any], tuple[Tensor, Tensor | None]]
_REMEDY = "give `outputs=`, a function from module and batch to (outputs, labels)"


def fisher_information(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    parameters: Mapping[str, Tensor] | None = None,
    estimator: Estimator = "exact",
    likelihood: Likelihood = "categorical",
    outputs: Outputs | None = None,
) -> dict[str, Tensor]:
    r"""Mean over samples of the diagonal Fisher information, as :class:`~cl_callbacks.EWC` measures it.

    .. math:: F_i = \mathrm E_x \sum_c p(c|x) \Bigl(\frac{\partial \log p(c|x)}{\partial\theta_i}\Bigr)^2

    The network is in evaluation mode meanwhile. ``"sampled"`` draws labels with torch's global generator.

    Args:
        module: the network, a LightningModule or any other.
        batches: ``(x, y)`` pairs, lone tensors or mappings, such as a ``DataLoader``; on any device.
        parameters: for which it is computed, by name; default: all that require a gradient.
        estimator: ``"exact"``, ``"sampled"``, ``"empirical"`` or ``"logits_reversal"``: see
            :class:`~cl_callbacks.EWC`.
        likelihood: ``"categorical"`` logits, or ``"gaussian"`` means of unit variance.
        outputs: function from module and batch to outputs ``(N, ...)`` and labels; default:
            :func:`~cl_callbacks.gradients.model_outputs.model_outputs`.

    Returns:
        By name, one tensor of the parameter's shape, at least float32. Samples whose outputs are not finite
        are left out.

    Raises:
        ValueError: outputs or labels that the estimator cannot read; no sample with finite outputs.
        TypeError: a batch of another type.

    Source: Kirkpatrick et al. 2017 (arXiv 1612.00796); the estimators as in :class:`~cl_callbacks.EWC`.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> fisher_information(net, [x], likelihood="gaussian")
        {'weight': tensor([[2.5000]])}
    """
    check_fisher(estimator, likelihood)
    if parameters is None:
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    device = next(iter(parameters.values())).device if parameters else torch.device("cpu")

    def forward(batch: Any) -> tuple[Tensor, Tensor | None]:
        return outputs(module, batch) if outputs else model_outputs(module, batch, _REMEDY)

    def cotangents(found: Tensor, labels: Tensor | None) -> Iterable[Tensor]:
        return fisher_cotangents(found, labels, estimator=estimator, likelihood=likelihood)

    per_sample, samples = PerSampleGradients(module, parameters, forward), 0
    totals = per_sample.zeros()
    with evaluation_mode(module):
        for batch in batches:
            totals, count = per_sample.sums(moved(batch, device), cotangents, totals)
            samples += count
    if not samples:
        raise ValueError("no sample has finite outputs, so there is no Fisher information to be measured")
    return {name: total / samples for name, total in zip(parameters, totals, strict=True)}
