"""Matrices that change no length, and the nearest one to a given matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOST_ITERATIONS = 100
"""Number after which an iteration that has not converged ends: small singular values grow by half in each."""


def nearest_isometry(matrices: Tensor, iterations: int | None = 10) -> Tensor:
    r"""The nearest matrix whose singular values are all 1: :math:`W(W^\top W)^{-1/2}`.

    It is found by the iteration of Newton and Schulz, of products of matrices alone,

    .. math:: X_0 = \frac{W}{\|W\|_F}, \qquad X_{k+1} = \tfrac32X_k - \tfrac12X_kX_k^\top X_k ,

    which takes a singular value :math:`s` of :math:`X_0` to 1 in about :math:`2.5\ln(1/s)+3` steps: 10 for
    one of a twentieth of the norm. Those that are 0 stay 0, so that a matrix of zeros stays as it is.

    Args:
        matrices: :math:`W`, ``(..., m, n)``, with more rows than columns or fewer.
        iterations: number of steps; ``None`` until nothing changes but for rounding, for which the host waits
            for the device.

    Returns:
        A tensor of the same shape, of at least single precision.

    Example:
        >>> nearest_isometry(torch.tensor([[3.0, 0.0], [0.0, -0.5]]), iterations=None)
        tensor([[ 1.,  0.],
                [ 0., -1.]])
    """
    x = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    wide = x.shape[-1] > x.shape[-2]
    x = x.mT if wide else x
    norm = torch.linalg.matrix_norm(x, keepdim=True)
    x = x / torch.where(norm > 0, norm, 1.0)
    for _ in range(MOST_ITERATIONS if iterations is None else iterations):
        before, x = x, 1.5 * x - 0.5 * x @ (x.mT @ x)
        if iterations is None and (x - before).abs().amax() <= 4 * torch.finfo(x.dtype).eps:
            break
    return x.mT if wide else x


def isometry_scale(outputs: int, inputs: int, positions: int = 1) -> float:
    r"""Factor :math:`\sqrt{n_\text{out}/n_\text{in}}/k` on an isometry in a layer.

    Args:
        outputs: :math:`n_\text{out}`.
        inputs: :math:`n_\text{in}`.
        positions: :math:`k`, number of places of a convolution's kernel, each of which has a matrix.

    Example:
        >>> isometry_scale(100, 25), isometry_scale(8, 8, positions=9)
        (2.0, 0.1111111111111111)
    """
    return math.sqrt(outputs / inputs) / positions
