r"""The utility of a weight, and gradient descent that spares useful weights and perturbs the others.

The utility of a weight :math:`\theta` is by how much the loss would rise without it, to first order:
:math:`L(0)-L(\theta)\approx-g\theta`.

Source: Elsayed & Mahmood 2024, "Addressing loss of plasticity and catastrophic forgetting in continual
learning" (ICLR; arXiv 2404.00781).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cl_callbacks.functional.averaging import average_


def add_utility_(
    utility: Sequence[Tensor], gradients: Sequence[Tensor], weights: Sequence[Tensor], shares: Sequence[float]
) -> None:
    r"""Adds a step to a running average of the utility, in place: :math:`U \leftarrow U + w(-g\theta-U)`.

    Args:
        utility: :math:`U`.
        gradients: :math:`g`.
        weights: :math:`\theta`, at which the gradient was taken.
        shares: :math:`w`, one for each tensor; with :func:`newest_share` the average is an exponential one,
            corrected for its start at 0.

    Example:
        >>> utility = [torch.zeros(2)]
        >>> add_utility_(utility, [torch.tensor([1.0, -1.0])], [torch.tensor([2.0, 2.0])], [0.5])
        >>> utility
        [tensor([-1.,  1.])]
    """
    now = torch._foreach_mul(list(gradients), list(weights))
    torch._foreach_neg_(now)
    average_(utility, now, shares)


def utility_gates(utility: Sequence[Tensor], largest: Tensor) -> list[Tensor]:
    r"""Share of its step that each weight takes: :math:`1-\operatorname{sigmoid}(U/\max U)`.

    It is 0.27 for the most useful weight, 0.5 for one of no utility, and up to 1 for harmful ones. Where no
    weight has a utility above 0 there is nothing to compare with, and all shares are 0.5.

    Args:
        utility: :math:`U`, corrected for its start at 0.
        largest: :math:`\max U` over all weights, a scalar.

    Example:
        >>> utility_gates([torch.tensor([2.0, 0.0, -2.0])], torch.tensor(2.0))
        [tensor([0.2689, 0.5000, 0.7311])]
        >>> utility_gates([torch.tensor([0.0, -2.0])], torch.tensor(0.0))
        [tensor([0.5000, 0.5000])]
    """
    unit = torch.where(largest > 0, -largest, torch.inf)
    if all(u.device == unit.device for u in utility):
        scaled = torch._foreach_div(list(utility), unit)
    else:  # a network that was placed on several devices by hand
        scaled = tuple(u / unit.to(u.device) for u in utility)
    return list(torch._foreach_sigmoid(scaled))


def upgd_(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    gates: Sequence[Tensor],
    noise: Sequence[Tensor] | None,
    lr: Sequence[float],
    noise_std: float = 0.0,
    weight_decay: float = 0.0,
) -> None:
    r"""Takes a step of utility-based perturbed gradient descent, in place.

    .. math:: \theta \leftarrow (1-\eta\lambda)\,\theta - \eta\,(g+\sigma\xi)\,s

    Args:
        weights: :math:`\theta`.
        gradients: :math:`g`.
        gates: :math:`s`, of :func:`utility_gates`.
        noise: :math:`\xi`, standard normal numbers of the shapes of the weights; ``None`` for none.
        lr: :math:`\eta`, one for each tensor.
        noise_std: :math:`\sigma`.
        weight_decay: :math:`\lambda`.

    Example:
        >>> theta = [torch.tensor([1.0])]
        >>> upgd_(theta, [torch.tensor([4.0])], [torch.tensor([0.5])], None, [0.1])
        >>> theta
        [tensor([0.8000])]
    """
    moves = torch._foreach_mul(list(gates), list(gradients))
    if noise is not None:
        torch._foreach_addcmul_(moves, list(gates), list(noise), value=noise_std)
    torch._foreach_mul_(moves, [-rate for rate in lr])
    if weight_decay:
        torch._foreach_mul_(list(weights), [1.0 - rate * weight_decay for rate in lr])
    torch._foreach_add_(list(weights), list(moves))
