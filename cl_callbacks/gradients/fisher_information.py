"""Computes the diagonal Fisher information of a network in one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cl_callbacks.functional.fisher import Estimator
from cl_callbacks.functional.labels import IGNORED
from cl_callbacks.functional.likelihood import Likelihood
from cl_callbacks.gradients.fisher_reader import FisherReader
from cl_callbacks.gradients.model_outputs import Found, as_pair, model_outputs
from cl_callbacks.gradients.modes import differentiable_in_evaluation, evaluation_mode
from cl_callbacks.gradients.per_sample import PerSampleGradients
from cl_callbacks.gradients.precision import Precision
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.parameters import parameter_fault
from cl_callbacks.tensors.containers import moved

Outputs = Callable[[nn.Module, Any], Found]
_NOTHING = (
    "The Fisher information is exactly 0 for every parameter: the network is so certain that its "
    "probabilities are exactly 0 or 1, or its outputs do not depend on the parameters, or no position "
    "has a label."
)
_REMEDY = "give `outputs=`, a function from module and batch to (outputs, labels)"


@checked()
def fisher_information(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    parameters: Mapping[str, Tensor] | None = None,
    estimator: Estimator = "exact",
    likelihood: Likelihood | None = None,
    class_dim: int | None = None,
    ignore_index: int = IGNORED,
    outputs: Outputs | None = None,
) -> dict[str, Tensor]:
    r"""Mean over samples of the diagonal Fisher information, as :class:`~cl_callbacks.EWC` measures it.

    .. math:: F_i = \mathrm E_x \sum_c p(c|x) \Bigl(\frac{\partial \log p(c|x)}{\partial\theta_i}\Bigr)^2

    The network is in evaluation mode meanwhile, and under the caller's ``torch.autocast`` if there is one;
    sums are float32. ``"sampled"`` draws labels with torch's global generator.

    Args:
        module: the network, a LightningModule or any other.
        batches: ``(x, y)`` pairs, ``(x, y, task)``, lone tensors or mappings, such as a ``DataLoader``; on
            any device.
        parameters: for which it is computed, by name; default: all that require a gradient.
        estimator: ``"exact"``, ``"sampled"``, ``"empirical"`` or ``"logits_reversal"``: see
            :class:`~cl_callbacks.EWC`.
        likelihood: ``"categorical"``, ``"bernoulli"`` or ``"gaussian"``: see :class:`~cl_callbacks.EWC`. The
            default reads labels that are classes, and refuses others.
        class_dim: dimension of the classes, 1 or -1, where the shape of the labels leaves it open.
        ignore_index: label of positions without a target.
        outputs: function from module and batch to outputs ``(N, ...)``, alone or with labels; default:
            :func:`~cl_callbacks.gradients.model_outputs.model_outputs`.

    Returns:
        By name, one tensor of the parameter's shape, at least float32. Samples whose outputs are not finite
        are left out.

    Warns:
        UserWarning: a Fisher information of exactly 0 for all parameters.

    Raises:
        ValueError: outputs or labels that the estimator cannot read, or that contradict the likelihood; no
            sample with finite outputs; a parameter that is complex, lazy or has no values.
        TypeError: a batch of another type.

    Source: Kirkpatrick et al. 2017 (arXiv 1612.00796); the estimators as in :class:`~cl_callbacks.EWC`.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> fisher_information(net, [x], likelihood="gaussian")
        {'weight': tensor([[2.5000]])}
    """
    reader = FisherReader(estimator, likelihood, class_dim, ignore_index)
    if parameters is None:
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for name, p in parameters.items():
        if (fault := parameter_fault(p)) is not None:
            raise ValueError(f"{name} {fault}; or leave it out of `parameters`.")
    device = next(iter(parameters.values())).device if parameters else torch.device("cpu")
    precision = Precision.now(device.type)

    def forward(batch: Any) -> tuple[Tensor, Tensor | None]:
        with precision.again():
            return as_pair(outputs(module, batch) if outputs else model_outputs(module, batch, _REMEDY))

    per_sample, samples = PerSampleGradients(module, parameters, forward), 0
    totals = per_sample.zeros()
    with evaluation_mode(module), differentiable_in_evaluation(module), precision.full().again():
        for batch in batches:
            totals, count = per_sample.sums(moved(batch, device), reader.cotangents, totals)
            samples += count
    if not samples:
        raise ValueError("no sample has finite outputs, so there is no Fisher information to be measured")
    if totals and not any(bool(total.any()) for total in totals):
        warnings.warn(_NOTHING, stacklevel=2)
    return {name: total / samples for name, total in zip(parameters, totals, strict=True)}
