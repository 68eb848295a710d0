"""Mean-field Gaussian weights: the mean and the standard deviation of each weight, and their steps."""

from __future__ import annotations

import math

from torch import Tensor

from tests.references.beakers import capacities, conductances, flow, scalars, tensor_like

SMALLEST_STD = 1e-6


def clipped(increment: float, std: float, trust_region: float | None) -> float:
    """Return the increment within the trust region, if there is one.

    min(max(d, -r sigma), r sigma).
    """
    if trust_region is None:
        return increment
    return min(max(increment, -trust_region * std), trust_region * std)


def bgd_step(
    mean: Tensor, std: Tensor, gradient: Tensor, noise_gradient: Tensor, lr_scale: float
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation after one step of Zeno et al.

    mu <- mu - rate sigma^2 g, sigma <- sigma sqrt(1 + a^2) - sigma a, a = sigma q / 2, q = E[g eps].
    """
    means, stds = [], []
    for mu, sigma, g, q in zip(
        scalars(mean), scalars(std), scalars(gradient), scalars(noise_gradient), strict=True
    ):
        a = sigma * q / 2
        means.append(mu - lr_scale * sigma**2 * g)
        stds.append(sigma * math.sqrt(1 + a**2) - sigma * a)
    return tensor_like(means, mean), tensor_like(stds, std)


def mesu_std(
    sigma: float,
    q: float,
    memory_steps: float,
    prior_std: float,
    std_lr_scale: float,
    trust_region: float | None,
) -> float:
    """Return one standard deviation after one step of Bonnet et al. (2025).

    dsigma = -std_lr_scale sigma^2 q / 2 + sigma (sigma_p^2 - sigma^2) / (2 N sigma_p^2).
    """
    dsigma = -std_lr_scale * sigma**2 * q / 2
    if not math.isinf(memory_steps):
        dsigma += sigma * (prior_std**2 - sigma**2) / (2 * memory_steps * prior_std**2)
    return max(sigma + clipped(dsigma, sigma, trust_region), SMALLEST_STD)


def mesu_step(
    mean: Tensor,
    std: Tensor,
    gradient: Tensor,
    noise_gradient: Tensor,
    *,
    memory_steps: float,
    prior_std: float,
    lr_scale: float = 1.0,
    std_lr_scale: float = 1.0,
    trust_region: float | None = None,
    prior_mean: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation after one step of Bonnet et al. (2025), both from the old ones.

    dmu = -rate sigma^2 g + sigma^2 (mu_p - mu) / (N sigma_p^2),
    dsigma = -std_lr_scale sigma^2 q / 2 + sigma (sigma_p^2 - sigma^2) / (2 N sigma_p^2).
    """
    priors = [0.0] * mean.numel() if prior_mean is None else scalars(prior_mean)
    means, stds = [], []
    for mu, sigma, g, q, mu_p in zip(
        scalars(mean), scalars(std), scalars(gradient), scalars(noise_gradient), priors, strict=True
    ):
        dmu = -lr_scale * sigma**2 * g
        if not math.isinf(memory_steps):
            dmu += sigma**2 * (mu_p - mu) / (memory_steps * prior_std**2)
        means.append(mu + clipped(dmu, sigma, trust_region))
        stds.append(mesu_std(sigma, q, memory_steps, prior_std, std_lr_scale, trust_region))
    return tensor_like(means, mean), tensor_like(stds, std)


def chain_step(
    mean: Tensor,
    std: Tensor,
    slow: list[Tensor],
    gradient: Tensor,
    noise_gradient: Tensor,
    *,
    memory_steps: float,
    prior_std: float,
    coupling: float,
    ratio: float,
    lr_scale: float = 1.0,
    std_lr_scale: float = 1.0,
    trust_region: float | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return mean, standard deviation and slow beakers after one step, all from the old ones.

    dmu = -rate sigma^2 g + coupling min(1, sigma^2 / sigma_p^2) (u_2 - mu), dsigma as without beakers;
    C_k du_k = g_(k-1) (u_(k-1) - u_k) - g_k (u_k - u_(k+1)), k = 2..m, u_1 = mu, g_m = 0.
    """
    if not slow:
        raise ValueError("there must be at least one slow beaker")
    means, stds = [], []
    for mu, sigma, g, q, u_2 in zip(
        scalars(mean), scalars(std), scalars(gradient), scalars(noise_gradient), scalars(slow[0]), strict=True
    ):
        dmu = -lr_scale * sigma**2 * g + coupling * min(1.0, sigma**2 / prior_std**2) * (u_2 - mu)
        means.append(mu + clipped(dmu, sigma, trust_region))
        stds.append(mesu_std(sigma, q, memory_steps, prior_std, std_lr_scale, trust_region))
    m = len(slow) + 1
    chain = flow([mean, *slow], capacities(m, ratio), conductances(m, coupling, ratio, leak=False))
    # The first beaker is the mean, whose own step is the one above.
    return tensor_like(means, mean), tensor_like(stds, std), chain[1:]


def posterior_variance(observations: int, curvature: float, variance: float) -> float:
    """Return the exact variance after the observations, added one by one.

    1 / v <- 1 / v + curvature.
    """
    for _ in range(observations):
        variance = 1 / (1 / variance + curvature)
    return variance
