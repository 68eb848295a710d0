r"""Sensitivity of a network's output function to its weights, without any labels.

Memory aware synapses measure how much the squared norm of the output vector changes with each weight,

.. math:: \Omega_i = \frac1N \sum_n \Bigl| \frac{\partial \|f(x_n)\|^2}{\partial\theta_i} \Bigr|
          = \frac1N \sum_n \bigl| (J_n^\top v_n)_i \bigr| .

The absolute value is taken per sample, since gradients of a batch would cancel. Source: Aljundi et al. 2018
(arXiv 1711.09601); the norm without the square: Aljundi et al. 2019 (1812.03596).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Norm = Literal["squared", "l2"]
NORMS: tuple[str, ...] = get_args(Norm)


def sensitivity_cotangent(outputs: Tensor, norm: Norm = "squared") -> Tensor:
    r"""Cotangent :math:`v` of the outputs, whose pull-back to the weights is the gradient of the norm.

    Args:
        outputs: :math:`f`, of shape ``(N, ...)``.
        norm: ``"squared"``, :math:`v = 2f`; ``"l2"``, :math:`v = f/\|f\|` (0 at the origin).

    Returns:
        A tensor of the shape of ``outputs``.

    Example:
        >>> sensitivity_cotangent(torch.tensor([[3.0, 4.0]]), "l2")
        tensor([[0.6000, 0.8000]])
    """
    outputs = outputs.detach()
    if norm == "squared":
        return 2.0 * outputs
    flat = outputs.flatten(1) if outputs.ndim > 1 else outputs.unsqueeze(1)
    return torch.nn.functional.normalize(flat, eps=torch.finfo(flat.dtype).tiny).view_as(outputs)
