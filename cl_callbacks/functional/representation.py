r"""How many directions a set of activations or a matrix uses.

Sources: Roy & Vetterli 2007 for the effective rank; Kumar et al. 2021 (arXiv 2010.14498) for its use in deep
learning.
"""

from __future__ import annotations

import torch
from torch import Tensor


def effective_rank(matrix: Tensor) -> Tensor:
    r"""Exponential of the entropy of the singular values.

    .. math:: \exp\Big(-\sum_k p_k\log p_k\Big), \qquad p = s \Big/ \sum_k s_k

    Args:
        matrix: ``(N, D)``; 0 everywhere gives 0.

    Returns:
        Scalar, from 1 to ``min(N, D)``.

    Example:
        >>> round(float(effective_rank(torch.eye(3))), 4)
        3.0
    """
    values = torch.linalg.svdvals(matrix)
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    entropy = -torch.special.xlogy(shares, shares).sum()
    return torch.where(values.sum() > 0, entropy.exp(), torch.zeros_like(entropy))


def stable_rank(matrix: Tensor) -> Tensor:
    r"""Squared Frobenius norm over squared spectral norm, :math:`\|W\|_F^2 / \|W\|_2^2`.

    Args:
        matrix: ``(N, D)``; 0 everywhere gives 0.

    Returns:
        Scalar, from 1 to ``min(N, D)``.

    Example:
        >>> stable_rank(torch.diag(torch.tensor([2.0, 1.0])))
        tensor(1.2500)
    """
    squares = torch.linalg.svdvals(matrix).square()
    return squares.sum() / squares.max().clamp(min=torch.finfo(squares.dtype).tiny)
