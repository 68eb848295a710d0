r"""Synapses that know how sure they are: a Gaussian :math:`\mathcal N(\mu,\sigma^2)` for each weight.

The network is seen at weights :math:`w=\mu+\sigma\epsilon`; with the gradient :math:`g` there,
:math:`\mathbb E[g]` and :math:`\mathbb E[g\epsilon]` are the derivatives of the expected loss with respect to
:math:`\mu` and :math:`\sigma`. The loss is a *sum* over the observations of a step, so that variances are in
units of weights squared and the update has no learning rate: a sure synapse takes small steps.

Sources: Zeno et al. 2018, Bayesian gradient descent (arXiv 1803.10123); Bonnet et al. 2025, "Bayesian
continual learning and forgetting in neural networks" (MESU, Nature Communications).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cl_callbacks.functional.fused import fusable

SMALLEST_STD = 1e-6
"""Where the standard deviation ends, so that a synapse never stops for good."""


@fusable
def bgd_(
    means: Sequence[Tensor],
    stds: Sequence[Tensor],
    gradients: Sequence[Tensor],
    noise_gradients: Sequence[Tensor],
    rate: float = 1.0,
    trust_region: float | None = None,
) -> None:
    r"""Bayesian gradient descent, in place.

    .. math:: \mu \leftarrow \mu - \eta\sigma^2\,\mathbb E[g], \qquad
              \sigma \leftarrow \sigma\big(\sqrt{1+a^2}-a\big), \quad a = \tfrac12\sigma\,\mathbb E[g\epsilon]

    Nothing is ever forgotten: with every observation the synapses become surer, and stiffer.

    Args:
        means: :math:`\mu`.
        stds: :math:`\sigma`.
        gradients: :math:`\mathbb E[g]` of the summed loss.
        noise_gradients: :math:`\mathbb E[g\epsilon]` of the summed loss.
        rate: :math:`\eta`.
        trust_region: largest change of :math:`\mu` and of :math:`\sigma`, in units of :math:`\sigma`;
            ``None`` for no limit.

    Example:
        >>> means, stds = [torch.zeros(1)], [torch.ones(1)]
        >>> bgd_(means, stds, [torch.tensor([0.5])], [torch.tensor([1.5])])
        >>> means, stds
        ([tensor([-0.5000])], [tensor([0.5000])])
    """
    a = torch._foreach_mul(list(stds), list(noise_gradients))
    torch._foreach_mul_(a, 0.5)
    move = torch._foreach_mul(list(stds), list(stds))
    torch._foreach_mul_(move, list(gradients))
    torch._foreach_mul_(move, -rate)
    # √(1+a²) − a = (√(1+a²) + |a|)^(−sign a), which does not cancel to 0.
    growth = torch._foreach_mul(a, a)
    torch._foreach_add_(growth, 1.0)
    torch._foreach_sqrt_(growth)
    torch._foreach_add_(growth, torch._foreach_abs(a))
    torch._foreach_sign_(a)
    torch._foreach_neg_(a)
    factor = torch._foreach_pow(growth, a)
    if trust_region is not None:
        _limit_(move, torch._foreach_mul(list(stds), trust_region))
        torch._foreach_clamp_min_(factor, 1 - trust_region)
        torch._foreach_clamp_max_(factor, 1 + trust_region)
    torch._foreach_add_(list(means), move)
    torch._foreach_mul_(list(stds), factor)
    torch._foreach_clamp_min_(list(stds), SMALLEST_STD)


@fusable
def mesu_(
    means: Sequence[Tensor],
    stds: Sequence[Tensor],
    gradients: Sequence[Tensor],
    noise_gradients: Sequence[Tensor],
    *,
    memory: float,
    prior_std: float,
    rate: float = 1.0,
    std_rate: float = 1.0,
    trust_region: float | None = None,
    slow: Sequence[Tensor] | None = None,
    coupling: float = 0.0,
) -> None:
    r"""Metaplasticity from synaptic uncertainty, in place: learning within a window of :math:`N` steps.

    .. math::
        \Delta\mu &= -\sigma^2\,\mathbb E[g] - \frac{\sigma^2}{\sigma_p^2}\,\frac{\mu}{N}, \\
        \Delta\sigma &= -\tfrac12\sigma^2\,\mathbb E[g\epsilon]
                        + \frac{\sigma(\sigma_p^2-\sigma^2)}{2N\sigma_p^2}

    Where the loss has the curvature :math:`h`, the variance goes to :math:`1/(Nh+1/\sigma_p^2)`; where there
    are no data it goes back to the prior's. With a ``slow`` copy of the mean, the mean relaxes towards that
    instead of 0:

    .. math:: \Delta\mu = -\sigma^2\,\mathbb E[g] + g_1\min(1, \sigma^2/\sigma_p^2)(u_2-\mu)

    Args:
        means: :math:`\mu`.
        stds: :math:`\sigma`.
        gradients: :math:`\mathbb E[g]` of the summed loss.
        noise_gradients: :math:`\mathbb E[g\epsilon]` of the summed loss.
        memory: :math:`N`, in steps; ``math.inf`` never forgets, and is Bayesian gradient descent to second
            order in :math:`\sigma\,\mathbb E[g\epsilon]`.
        prior_std: :math:`\sigma_p`.
        rate: factor on the data's part of :math:`\Delta\mu`.
        std_rate: factor on the data's part of :math:`\Delta\sigma`.
        trust_region: largest size of either increment, in units of :math:`\sigma`; ``None`` for no limit.
        slow: :math:`u_2`.
        coupling: :math:`g_1`.

    Example:
        >>> means, stds = [torch.ones(1)], [torch.ones(1)]
        >>> none = [torch.zeros(1)]
        >>> mesu_(means, stds, none, none, memory=10.0, prior_std=2.0)
        >>> means, stds
        ([tensor([0.9750])], [tensor([1.0375])])
    """
    variances = torch._foreach_mul(list(stds), list(stds))
    move = torch._foreach_mul(variances, list(gradients))
    torch._foreach_mul_(move, -rate)
    widen = torch._foreach_mul(variances, list(noise_gradients))
    torch._foreach_mul_(widen, -0.5 * std_rate)
    shares = torch._foreach_div(variances, prior_std**2)
    if memory < math.inf:
        # σ(σp² − σ²)/(2Nσp²) = (σ − σ·share)/(2N)
        torch._foreach_add_(widen, list(stds), alpha=0.5 / memory)
        torch._foreach_addcmul_(widen, list(stds), shares, value=-0.5 / memory)
    if slow is not None:
        torch._foreach_clamp_max_(shares, 1.0)
        torch._foreach_addcmul_(move, shares, torch._foreach_sub(list(slow), list(means)), value=coupling)
    elif memory < math.inf:
        torch._foreach_addcmul_(move, shares, list(means), value=-1.0 / memory)
    if trust_region is not None:
        bounds = torch._foreach_mul(list(stds), trust_region)
        _limit_(move, bounds)
        _limit_(widen, bounds)
    torch._foreach_add_(list(means), move)
    torch._foreach_add_(list(stds), widen)
    torch._foreach_clamp_min_(list(stds), SMALLEST_STD)


def relative_variance(stds: Sequence[Tensor], reference: float) -> list[Tensor]:
    r""":math:`\min(1, \sigma^2/\sigma_r^2)`: how plastic a synapse is, next to one that knows nothing.

    Example:
        >>> relative_variance([torch.tensor([0.5, 2.0])], 1.0)
        [tensor([0.2500, 1.0000])]
    """
    shares = torch._foreach_mul(list(stds), list(stds))
    torch._foreach_div_(shares, reference**2)
    torch._foreach_clamp_max_(shares, 1.0)
    return list(shares)


def _limit_(increments: tuple[Tensor, ...], bounds: tuple[Tensor, ...]) -> None:
    torch._foreach_minimum_(increments, bounds)
    torch._foreach_maximum_(increments, torch._foreach_neg(bounds))
