"""The loss by which a network is held to the outputs of another one: knowledge distillation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cl_callbacks.functional.labels import index_shapes
from cl_callbacks.functional.likelihood import Likelihood, Reading

Direction = Literal["forward", "reverse"]


def distillation_loss(
    outputs: Tensor,
    teacher: Tensor,
    *,
    likelihood: Likelihood = "categorical",
    temperature: float = 2.0,
    direction: Direction = "forward",
    mask: Tensor | None = None,
) -> Tensor:
    r"""Divergence of a network's outputs from those of a teacher, as a mean.

    ===============  =================================================================================
    categorical      :math:`T^2\,\mathrm{KL}(\mathrm{softmax}(z'/T)\,\|\,\mathrm{softmax}(z/T))`, mean
                     over samples and positions
    bernoulli        the same for each output by itself, with :math:`\sigma(z/T)` and
                     :math:`1-\sigma(z/T)`; mean over samples and outputs
    gaussian         :math:`(z-z')^2`, mean over samples and outputs; without a temperature
    ===============  =================================================================================

    :math:`T^2` keeps the size of the gradient nearly the same for all temperatures. If there are more
    outputs than the teacher has, as of a head that has grown, only as many are compared, and the softmax is
    over these. Half precision is computed in float32.

    Sources: Hinton et al. 2015 (arXiv 1503.02531); Li & Hoiem 2016, learning without forgetting (1606.09282).

    Args:
        outputs: :math:`z`, ``(N, ..., C)``, classes last.
        teacher: :math:`z'`, ``(N, ..., D)`` with ``D`` at most ``C``.
        likelihood: what the outputs parametrise.
        temperature: :math:`T`, above 0.
        direction: ``"forward"`` as above; ``"reverse"`` for
            :math:`\mathrm{KL}(\mathrm{softmax}(z/T)\,\|\,\mathrm{softmax}(z'/T))`.
        mask: which positions count, ``(N, ...)`` for categorical and ``(N, ..., C)`` otherwise; default: all.

    Returns:
        A scalar; 0 if no position counts.

    Raises:
        ValueError: fewer outputs than the teacher has, or others.

    Example:
        >>> loss = distillation_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
        >>> round(loss.item(), 4)  # 4 KL((0.731, 0.269) || (0.5, 0.5))
        0.4438
    """
    if (
        outputs.ndim != teacher.ndim
        or outputs.shape[:-1] != teacher.shape[:-1]
        or outputs.shape[-1] < teacher.shape[-1]
    ):
        raise ValueError(
            f"outputs of shape {tuple(outputs.shape)} cannot be compared with those of a teacher of shape "
            f"{tuple(teacher.shape)}: outputs may become more, along the last dimension, but not fewer"
        )
    count = teacher.shape[-1]
    new, old = _wide(outputs[..., :count]), _wide(teacher).to(outputs.device)
    if mask is not None and likelihood != "categorical":
        mask = mask[..., :count]
    if likelihood == "gaussian":
        return _mean((new - old).square(), mask)
    if likelihood == "bernoulli":  # a softmax over the logit and 0
        new, old = (torch.stack([z, torch.zeros_like(z)], -1) for z in (new, old))
    p, q = ((z / temperature).log_softmax(-1) for z in (old, new))
    if direction == "reverse":
        p, q = q, p
    # Classes of probability 0, as of logits that are masked by -inf, count nothing.
    ratio = (p - q).masked_fill(p == -torch.inf, 0.0)
    return temperature**2 * _mean((p.exp() * ratio).sum(-1), mask)


def positions_with_label(outputs: Tensor, labels: Tensor | None, reading: Reading) -> Tensor | None:
    """Mask of the positions whose label is not ``ignore_index``, for :func:`distillation_loss`.

    Nothing waits for the device.

    Args:
        outputs: ``(N, ..., C)``, classes last.
        labels: classes, ``(N, ...)`` or with a dimension of 1 for the classes; or targets of the shape of the
            outputs.
        reading: how they are read.

    Returns:
        Of the shape of the outputs, without their classes if ``"categorical"``; ``None`` where all positions
        count: without labels, for probabilities of classes, for numbers.

    Example:
        >>> positions_with_label(torch.zeros(1, 2, 3), torch.tensor([[1, -100]]), Reading())
        tensor([[ True, False]])
    """
    if labels is None:
        return None
    if reading.likelihood == "gaussian":  # outputs that are compared as numbers may have classes as labels
        classes = not labels.is_floating_point() and outputs.ndim > 1 and outputs.shape[-1] > 1
        if not (classes and labels.shape in index_shapes(torch.empty(outputs.shape, device="meta"), -1)):
            return None
        return (labels.reshape(outputs.shape[:-1]) != reading.ignore_index).unsqueeze(-1).expand_as(outputs)
    if reading.likelihood == "bernoulli":
        return labels.reshape(outputs.shape) != reading.ignore_index
    own = outputs.movedim(-1, reading.class_dim).shape
    if labels.shape not in index_shapes(torch.empty(own, device="meta"), reading.class_dim):
        return None
    return labels.reshape(outputs.shape[:-1]) != reading.ignore_index


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype.itemsize < 4 else values


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean()
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp_min(1)
