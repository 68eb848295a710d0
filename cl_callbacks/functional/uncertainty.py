r"""Synapses with uncertainty: a Gaussian :math:`\mathcal N(\mu,\sigma^2)` for each weight.

Forward and backward run at sampled weights :math:`w=\mu+\sigma\epsilon`; with the gradient :math:`g` there,
:math:`\mathbb E[g]` and :math:`\mathbb E[g\epsilon]` are the derivatives of the expected loss with respect to
:math:`\mu` and :math:`\sigma`. The loss is a *sum* over the observations of a step, so that variances are in
units of weights squared and the update has no learning rate: a certain synapse takes small steps.

Sources: Zeno et al. 2018, Bayesian gradient descent (arXiv 1803.10123); Bonnet et al. 2025, "Bayesian
continual learning and forgetting in neural networks" (MESU, Nature Communications).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cl_callbacks.compiled.fused import fusable
from cl_callbacks.tensors.finite import zero_nonfinite_

SMALLEST_STD = 1e-6
"""Lower bound of the standard deviation, so that a synapse never stops learning for good."""


@fusable
def draw_(
    means: Sequence[Tensor], weights: Sequence[Tensor], noise: Sequence[Tensor], stds: Sequence[Tensor]
) -> None:
    r"""Copies the weights to the means, and replaces them by :math:`w=\mu+\sigma\epsilon`.

    Args:
        means: overwritten by :math:`\mu`.
        weights: :math:`\mu`, overwritten by :math:`w`.
        noise: :math:`\epsilon`.
        stds: :math:`\sigma`.

    Example:
        >>> means, weights = [torch.zeros(1)], [torch.ones(1)]
        >>> draw_(means, weights, [torch.tensor([2.0])], [torch.tensor([0.5])])
        >>> means, weights
        ([tensor([1.])], [tensor([2.])])
    """
    torch._foreach_copy_(list(means), list(weights))
    torch._foreach_addcmul_(list(weights), list(noise), list(stds))


@fusable
def keep_noise_gradients_(
    kept: Sequence[Tensor],
    noise: Sequence[Tensor],
    gradients: Sequence[Tensor],
    gathered: Sequence[Tensor] | None = None,
) -> None:
    r"""Overwrites ``kept`` with :math:`g\epsilon`, plus the sums gathered before; with 0 if not finite.

    Example:
        >>> kept = [torch.zeros(2)]
        >>> keep_noise_gradients_(kept, [torch.ones(2)], [torch.tensor([3.0, torch.inf])])
        >>> kept
        [tensor([3., 0.])]
    """
    products = torch._foreach_mul(list(noise), list(gradients))
    if gathered is not None:
        torch._foreach_add_(products, list(gathered))
    torch._foreach_copy_(list(kept), products)
    zero_nonfinite_(kept)


@fusable(numbers=["scale", "widest"])
def bgd_(
    means: Sequence[Tensor],
    stds: Sequence[Tensor],
    gradients: Sequence[Tensor],
    noise_gradients: Sequence[Tensor],
    lr_scale: float = 1.0,
    trust_region: float | None = None,
    scale: float | Tensor = 1.0,
    std_lr_scale: float = 1.0,
    widest: float | Sequence[float] | None = None,
) -> None:
    r"""Takes one step of Bayesian gradient descent, in place.

    .. math:: \mu \leftarrow \mu - \eta\sigma^2\,\mathbb E[g], \qquad
              \sigma \leftarrow \sigma\big(\sqrt{1+a^2}-a\big), \quad
              a = \tfrac12\eta_\sigma\sigma\,\mathbb E[g\epsilon]

    Nothing is ever forgotten: with every observation the synapses become more certain, and stiffer.

    Args:
        means: :math:`\mu`.
        stds: :math:`\sigma`.
        gradients: :math:`\mathbb E[g]` of the summed loss.
        noise_gradients: :math:`\mathbb E[g\epsilon]` of the summed loss.
        lr_scale: :math:`\eta`.
        trust_region: largest change of :math:`\mu` and of :math:`\sigma`, in units of :math:`\sigma`;
            ``None`` for no limit.
        scale: factor on both gradients, such as the number of observations if they are of a mean loss.
        std_lr_scale: :math:`\eta_\sigma`.
        widest: upper bound of :math:`\sigma`, the same for all tensors or one for each; ``None`` for none.
            Most of :math:`a` is noise, by which :math:`\log\sigma` wanders up as easily as down.

    Example:
        >>> means, stds = [torch.zeros(1)], [torch.ones(1)]
        >>> bgd_(means, stds, [torch.tensor([0.5])], [torch.tensor([1.5])])
        >>> means, stds
        ([tensor([-0.5000])], [tensor([0.5000])])
    """
    a = torch._foreach_mul(list(stds), list(noise_gradients))
    torch._foreach_mul_(a, _times(scale, 0.5 * std_lr_scale))
    move = torch._foreach_mul(list(stds), list(stds))
    torch._foreach_mul_(move, list(gradients))
    torch._foreach_mul_(move, _times(scale, -lr_scale))
    # √(1+a²) − a = (√(1+a²) + |a|)^(−sign a), which does not cancel to 0.
    growth = torch._foreach_mul(a, a)
    torch._foreach_add_(growth, 1.0)
    torch._foreach_sqrt_(growth)
    torch._foreach_add_(growth, torch._foreach_abs(a))
    torch._foreach_sign_(a)
    torch._foreach_mul_(a, -0.5)
    torch._foreach_add_(a, 0.5)  # 1 where a < 0, and 0 where a > 0
    factor = torch._foreach_reciprocal(growth)
    torch._foreach_sub_(growth, factor)
    torch._foreach_addcmul_(factor, growth, a)
    if trust_region is not None:
        _limit_([move], torch._foreach_mul(list(stds), trust_region))
        torch._foreach_clamp_min_(factor, 1 - trust_region)
        torch._foreach_clamp_max_(factor, 1 + trust_region)
    torch._foreach_add_(list(means), move)
    torch._foreach_mul_(list(stds), factor)
    torch._foreach_clamp_min_(list(stds), SMALLEST_STD)
    if widest is not None:
        torch._foreach_clamp_max_(list(stds), widest)


@fusable(numbers=["prior_std", "scale"])
def mesu_(
    means: Sequence[Tensor],
    stds: Sequence[Tensor],
    gradients: Sequence[Tensor],
    noise_gradients: Sequence[Tensor],
    *,
    memory_steps: float,
    prior_std: float | Sequence[float],
    lr_scale: float = 1.0,
    std_lr_scale: float = 1.0,
    trust_region: float | None = None,
    slow: Sequence[Tensor] | None = None,
    coupling: float = 0.0,
    scale: float | Tensor = 1.0,
) -> None:
    r"""Takes a step of metaplasticity from synaptic uncertainty, in place, with a memory of :math:`N` steps.

    .. math::
        \Delta\mu &= -\sigma^2\,\mathbb E[g] - \frac{\sigma^2}{\sigma_p^2}\,\frac{\mu}{N}, \\
        \Delta\sigma &= -\tfrac12\sigma^2\,\mathbb E[g\epsilon]
                        + \frac{\sigma(\sigma_p^2-\sigma^2)}{2N\sigma_p^2}

    Where the loss has the curvature :math:`h`, the variance tends to :math:`1/(Nh+1/\sigma_p^2)`; without
    data it returns to the prior's. With a ``slow`` copy of the mean, the mean relaxes towards that
    instead of 0:

    .. math:: \Delta\mu = -\sigma^2\,\mathbb E[g] + g_1\min(1, \sigma^2/\sigma_p^2)(u_2-\mu)

    Args:
        means: :math:`\mu`.
        stds: :math:`\sigma`.
        gradients: :math:`\mathbb E[g]` of the summed loss.
        noise_gradients: :math:`\mathbb E[g\epsilon]` of the summed loss.
        memory_steps: :math:`N`; ``math.inf`` never forgets, and is Bayesian gradient descent to second order
            in :math:`\sigma\,\mathbb E[g\epsilon]`.
        prior_std: :math:`\sigma_p`, the same for all tensors or one for each.
        lr_scale: factor on the term with :math:`g` of :math:`\Delta\mu`.
        std_lr_scale: factor on the term with :math:`g` of :math:`\Delta\sigma`.
        trust_region: largest size of either increment, in units of :math:`\sigma`; ``None`` for no limit.
        slow: :math:`u_2`.
        coupling: :math:`g_1`.
        scale: factor on both gradients, such as the number of observations if they are of a mean loss.

    Example:
        >>> means, stds = [torch.ones(1)], [torch.ones(1)]
        >>> none = [torch.zeros(1)]
        >>> mesu_(means, stds, none, none, memory_steps=10.0, prior_std=2.0)
        >>> means, stds
        ([tensor([0.9750])], [tensor([1.0375])])
    """
    variances = torch._foreach_mul(list(stds), list(stds))
    move = torch._foreach_mul(variances, list(gradients))
    torch._foreach_mul_(move, _times(scale, -lr_scale))
    widen = torch._foreach_mul(variances, list(noise_gradients))
    torch._foreach_mul_(widen, _times(scale, -0.5 * std_lr_scale))
    precision = _each(prior_std, lambda std: 1.0 / std**2)
    rate = _each(precision, lambda one: one / memory_steps)
    if memory_steps < math.inf:
        # σ(σp² − σ²)/(2Nσp²) = (σ − σ·σ²/σp²)/(2N)
        torch._foreach_add_(widen, list(stds), alpha=0.5 / memory_steps)
        _add_product_(widen, stds, variances, _times(rate, -0.5))
    if slow is not None:
        shares = torch._foreach_mul(variances, precision)
        torch._foreach_clamp_max_(shares, 1.0)
        torch._foreach_addcmul_(move, shares, torch._foreach_sub(list(slow), list(means)), value=coupling)
    elif memory_steps < math.inf:
        _add_product_(move, variances, means, _times(rate, -1.0))
    if trust_region is not None:
        _limit_([move, widen], torch._foreach_mul(list(stds), trust_region))
    torch._foreach_add_(list(means), move)
    torch._foreach_add_(list(stds), widen)
    torch._foreach_clamp_min_(list(stds), SMALLEST_STD)


def relative_variance(stds: Sequence[Tensor], reference: float | Sequence[float]) -> list[Tensor]:
    r"""Plasticity :math:`\min(1, \sigma^2/\sigma_r^2)` of synapses, relative to a reference :math:`\sigma_r`.

    The reference is the same for all tensors, or one for each.

    Example:
        >>> relative_variance([torch.tensor([0.5, 2.0])], 1.0)
        [tensor([0.2500, 1.0000])]
    """
    shares = torch._foreach_mul(list(stds), list(stds))
    torch._foreach_div_(shares, _each(reference, lambda one: one**2))
    torch._foreach_clamp_max_(shares, 1.0)
    return list(shares)


def _limit_(increments: Sequence[tuple[Tensor, ...]], bounds: tuple[Tensor, ...]) -> None:
    for some in increments:
        torch._foreach_minimum_(some, bounds)
    torch._foreach_neg_(bounds)
    for some in increments:
        torch._foreach_maximum_(some, bounds)


def _add_product_(
    sums: Sequence[Tensor], left: Sequence[Tensor], right: Sequence[Tensor], factor: Any
) -> None:
    """Adds ``factor * left * right``; the factor is a number, or a list with one for each tensor."""
    if isinstance(factor, list):
        left, factor = torch._foreach_mul(list(left), factor), 1.0
    torch._foreach_addcmul_(list(sums), list(left), list(right), value=factor)


def _times(scale: Any, factor: float) -> Any:
    """Multiplies a number, or a list with one for each tensor, by a factor."""
    return _each(scale, lambda one: one * factor)


def _each(value: Any, function: Callable[[Any], Any]) -> Any:
    """The function of a number, or a list of it for each number of a list."""
    return [function(one) for one in value] if isinstance(value, list | tuple) else function(value)
