r"""Equations on the units of a layer: how much each contributes, and whether it has fallen silent.

A unit is an output of a linear layer, or a channel of a convolution. The weight that reads the units has
``columns`` columns for each, side by side: those of the positions of a channel that was flattened, else one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def outgoing_magnitude(readers: Sequence[Tensor], number: int) -> Tensor:
    r"""Sum of the magnitudes of the weights that read each unit, :math:`\sum_k |w_{ki}|`.

    Args:
        readers: weights, each ``(outputs, number * columns, ...)``.
        number: of units.

    Returns:
        ``(number,)``.

    Example:
        >>> outgoing_magnitude([torch.tensor([[1.0, -2.0], [0.0, 3.0]])], 2)
        tensor([1., 5.])
    """
    return _sum_by_unit([w.abs() for w in readers], number)


def incoming_magnitude(weight: Tensor, number: int) -> Tensor:
    r"""Sum of the magnitudes of the weights that lead into each unit, :math:`\sum_j |w_{ij}|`.

    Args:
        weight: ``(number * rows, ...)``.
        number: of units.

    Returns:
        ``(number,)``.

    Example:
        >>> incoming_magnitude(torch.tensor([[1.0, -2.0], [0.0, 3.0]]), 2)
        tensor([3., 3.])
    """
    return weight.abs().reshape(number, -1).sum(1)


def held_magnitude(readers: Sequence[Tensor], plasticity: Sequence[Tensor], number: int) -> Tensor:
    r"""How firmly a rule holds what reads each unit, :math:`\sum_k w_{ki}^2\,(1/\pi_{ki} - 1)`.

    With the plasticity :math:`\pi = 1/(1+\eta\lambda\Omega)` of a rule that pulls it is
    :math:`\eta\lambda\sum_k\Omega_{ki}w_{ki}^2`: in proportion to what earlier tasks lose, to second order,
    when these weights become 0.

    Args:
        readers: weights, each ``(outputs, number * columns, ...)``.
        plasticity: of each of these weights, from 0 to 1.
        number: of units.

    Returns:
        ``(number,)``.

    Example:
        >>> weight, plasticity = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.25]])
        >>> held_magnitude([weight], [plasticity], 2)
        tensor([ 1., 12.])
    """
    pairs = zip(readers, plasticity, strict=True)
    return _sum_by_unit([w.square() * (1 / p.clamp(min=1e-30) - 1) for w, p in pairs], number)


def _sum_by_unit(values: Sequence[Tensor], number: int) -> Tensor:
    """Sums over the columns of each unit; of readers without rows, as a shard may be, 0."""
    by_column = [v.transpose(0, 1).flatten(1).sum(1) for v in values]
    return torch.stack([sums.view(number, -1).sum(1) for sums in by_column]).sum(0)


def debiased(average: Tensor, decay: float, age: Tensor) -> Tensor:
    r"""A running average that began at 0, without the weight of that zero: :math:`u / (1 - \eta^a)`.

    Args:
        average: ``(units * n,)``.
        decay: :math:`\eta`, from 0 to below 1.
        age: :math:`a`, number of values in the average of each unit, ``(units,)``; 0 gives 0.

    Returns:
        Of the shape of ``average``.

    Example:
        >>> debiased(torch.tensor([0.5, 0.75]), 0.5, torch.tensor([1.0, 2.0]))
        tensor([1., 1.])
    """
    weight = 1 - decay ** age.clamp(min=1)
    return average / weight.repeat_interleave(average.numel() // age.numel())


def bias_shift(reader: Tensor, mean: Tensor, index: Tensor) -> Tensor:
    r"""What some units add to the outputs of a layer on average: :math:`\sum_{i} w_{ki}\,\bar h_i`.

    Added to the bias of the layer, it makes up for the units when they are taken away. Exact where a unit has
    the value :math:`\bar h_i`; of a convolution, away from a padded border.

    Args:
        reader: weight of the layer, ``(outputs, inputs, ...)``.
        mean: :math:`\bar h`, mean of each input, ``(inputs,)``.
        index: of the inputs, ``(n,)``.

    Returns:
        ``(outputs,)``.

    Example:
        >>> bias_shift(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([1.0, 0.5, 0.25]), torch.tensor([1, 2]))
        tensor([2.])
    """
    weights = reader.index_select(1, index).flatten(2).sum(2) if reader.ndim > 2 else reader[:, index]
    return weights @ mean.to(weights)[index]


def relative_activity(activity: Tensor) -> Tensor:
    r"""Activity of each unit beside the mean of its layer.

    .. math:: s_i = \bar{|h_i|} \Big/ \frac1n\sum_j\bar{|h_j|}

    Units at or below a threshold are called dormant (Sokar et al. 2023, arXiv 2302.12902). In a layer that is
    silent altogether all of them are: 0.

    Args:
        activity: mean magnitude of each unit, ``(units,)``.

    Returns:
        ``(units,)``, with a mean of 1, or 0.

    Example:
        >>> relative_activity(torch.tensor([0.0, 1.0, 3.0, 0.0]))
        tensor([0., 1., 3., 0.])
    """
    mean = activity.mean()
    return torch.where(mean > 0, activity / mean, torch.zeros_like(activity))


def silence_log_probability(rate: Tensor, silent: Tensor) -> Tensor:
    r"""Logarithm of the probability of so long a silence: :math:`a_i \log(1 - p_i)`.

    That of a unit which is active in each sample with probability :math:`p_i` by itself, and has not been in
    the last :math:`a_i` samples: waiting times are geometric.

    Args:
        rate: :math:`p`, ``(units,)``, from 0 to 1.
        silent: :math:`a`, ``(units,)``, at least 0.

    Returns:
        ``(units,)``, at most 0.

    Example:
        >>> silence_log_probability(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 2.0])).exp()
        tensor([1.0000, 0.2500])
    """
    return torch.where(silent > 0, silent * torch.log1p(-rate.clamp(max=1 - 1e-7)), torch.zeros_like(rate))
