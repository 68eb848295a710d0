"""The loss of dark experience replay."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def stored_output_loss(outputs: Tensor, stored: Tensor) -> Tensor:
    r"""Mean squared distance of outputs from those that were stored, :math:`\mathrm{mean}\,(z - z')^2`.

    The mean is over samples and outputs, as in the published implementation, for which the published weights
    hold. If there are more outputs now than were stored, as of a head that has grown, only as many are
    compared.

    Source: Buzzega et al. 2020, dark experience replay (arXiv 2004.07211).

    Args:
        outputs: :math:`z`, ``(N, ..., C)``.
        stored: :math:`z'`, ``(N, ..., D)`` with ``D`` at most ``C``, on any device.

    Returns:
        A scalar.

    Raises:
        ValueError: fewer outputs than were stored, or others.

    Example:
        >>> import torch
        >>> stored_output_loss(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[1.0, 0.0]]))
        tensor(2.)
    """
    if (
        outputs.ndim != stored.ndim
        or outputs.shape[:-1] != stored.shape[:-1]
        or outputs.shape[-1] < stored.shape[-1]
    ):
        raise ValueError(
            f"outputs of shape {tuple(outputs.shape)} cannot be compared with stored ones of shape "
            f"{tuple(stored.shape)}: outputs may become more, along the last dimension, but not fewer"
        )
    return F.mse_loss(outputs[..., : stored.shape[-1]], stored.to(outputs))
