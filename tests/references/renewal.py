"""The rules that keep the ability to learn, in the plainest form."""

from __future__ import annotations

import torch
from torch import Tensor


def shrunk_and_perturbed(
    weights: list[Tensor], noise: list[list[Tensor]], shrink: float, stds: list[float]
) -> list[Tensor]:
    """Weights that were shrunk and perturbed as often as there is noise."""
    found = [p.clone() for p in weights]
    for draw in noise:
        for i, xi in enumerate(draw):
            found[i] = shrink * found[i] + stds[i] * xi
    return found


def upgd(
    weights: list[float],
    gradients: list[list[float]],
    noise: list[list[float]],
    lr: float,
    decay: float,
    std: float,
    weight_decay: float,
) -> list[float]:
    """Utility-based perturbed gradient descent, number by number, with a gradient and noise for each step."""
    theta, utility = list(weights), [0.0] * len(weights)
    for t, (g, xi) in enumerate(zip(gradients, noise, strict=True), 1):
        for i in range(len(theta)):
            utility[i] = decay * utility[i] - (1 - decay) * g[i] * theta[i]
        corrected = [u / (1 - decay**t) for u in utility]
        largest = max(corrected)
        for i in range(len(theta)):
            scaled = corrected[i] / largest if largest > 0 else 0.0
            gate = 1 - torch.sigmoid(torch.tensor(scaled, dtype=torch.float64)).item()
            theta[i] = (1 - lr * weight_decay) * theta[i] - lr * (g[i] + std * xi[i]) * gate
    return theta


def nearest_isometry(matrix: Tensor) -> Tensor:
    """The matrix with the same singular vectors whose singular values are all 1."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh
