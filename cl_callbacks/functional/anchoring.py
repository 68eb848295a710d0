r"""Quadratic anchoring of synapses: a penalty that pulls each weight to an anchor by its importance.

All consolidation rules share one penalty, :math:`\frac k2 \sum_i \Omega_i (\theta_i - \theta^*_i)^2`,
its gradient, and two ways to accumulate several tasks in constant memory. Everything works on
lists of tensors in a few ``torch._foreach_*`` calls; importance and anchor may have a wider dtype than
the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cl_callbacks.compiled.fused import fusable
from cl_callbacks.tensors.devices import stacked


def quadratic_penalty(
    parameters: Sequence[Tensor],
    importance: Sequence[Tensor],
    anchor: Sequence[Tensor],
    stiffness: float,
    offset: Tensor | float = 0.0,
) -> Tensor:
    r"""Penalty :math:`\frac k2 \bigl(\sum_i \Omega_i (\theta_i - \theta^*_i)^2 + b\bigr)`, a scalar.

    Args:
        parameters: current weights :math:`\theta`.
        importance: :math:`\Omega`, one tensor of the same shape per weight.
        anchor: :math:`\theta^*`, likewise.
        stiffness: :math:`k`; EWC's :math:`\lambda`.
        offset: :math:`b`, the part of the penalty that does not depend on the weights (:func:`merge_each_`).

    Example:
        >>> quadratic_penalty([torch.tensor([3.0])], [torch.tensor([2.0])], [torch.tensor([1.0])], 10.0)
        tensor(40.)
    """
    distance = torch._foreach_sub(list(parameters), list(anchor))
    terms = torch._foreach_mul(torch._foreach_mul(distance, distance), list(importance))
    total = stacked([term.sum() for term in terms]).sum()
    return 0.5 * stiffness * (total + offset)


def distances(parameters: Sequence[Tensor], anchor: Sequence[Tensor]) -> list[Tensor]:
    r"""Distance of each weight from its anchor, :math:`|\theta - \theta^*|`.

    Example:
        >>> distances([torch.tensor([1.0, -1.0])], [torch.tensor([3.0, -1.0])])
        [tensor([2., 0.])]
    """
    found = torch._foreach_sub(list(parameters), list(anchor))
    torch._foreach_abs_(found)
    return list(found)


def largest_importance(stiffness: float, lr: float) -> float:
    r"""Importance :math:`\frac{1}{\eta k}` with which one gradient step of the pull ends at the anchor.

    With more, plain gradient descent would overshoot, and diverge beyond twice as much. It is infinite
    without a pull.

    Args:
        stiffness: :math:`k`.
        lr: learning rate :math:`\eta`.

    Example:
        >>> largest_importance(10.0, lr=0.1), largest_importance(10.0, lr=0.0)
        (1.0, inf)
    """
    return 1.0 / (stiffness * lr) if stiffness * lr > 0 else math.inf


@fusable(numbers=["stiffness", "max_importance"])
def add_quadratic_pull_(
    gradients: Sequence[Tensor],
    parameters: Sequence[Tensor],
    importance: Sequence[Tensor],
    anchor: Sequence[Tensor],
    stiffness: float | Sequence[float],
    max_importance: float | Sequence[float] | None = None,
) -> None:
    r"""Adds the gradient of :func:`quadratic_penalty`, :math:`k\,\Omega(\theta - \theta^*)`, in place.

    Args:
        gradients: tensors to which it is added, usually the ``.grad`` of the parameters.
        parameters: current weights :math:`\theta`.
        importance: :math:`\Omega`.
        anchor: :math:`\theta^*`.
        stiffness: :math:`k`, or one for each tensor.
        max_importance: the largest :math:`\Omega`, or one for each tensor; ``None`` for no limit.

    Example:
        >>> g = [torch.zeros(1)]
        >>> add_quadratic_pull_(g, [torch.tensor([3.0])], [torch.tensor([2.0])], [torch.ones(1)], 10.0)
        >>> g
        [tensor([40.])]
    """
    distance = torch._foreach_sub(list(parameters), list(anchor))
    importance = list(importance)
    if max_importance is not None:
        importance = list(torch._foreach_clamp_max(importance, max_importance))
    if not isinstance(stiffness, float | int):
        torch._foreach_mul_(distance, stiffness)
        stiffness = 1.0
    torch._foreach_addcmul_(list(gradients), importance, distance, value=stiffness)


@fusable(numbers=["steps"])
def relax_to_anchor_(
    parameters: Sequence[Tensor],
    importance: Sequence[Tensor],
    anchor: Sequence[Tensor],
    steps: Sequence[float],
) -> None:
    r"""Takes a proximal step of :func:`quadratic_penalty`, in place: stable for any stiffness.

    .. math:: \theta \leftarrow \frac{\theta + \eta k\Omega\,\theta^*}{1 + \eta k\Omega}

    minimises the penalty plus :math:`\frac{1}{2\eta}` times the squared distance from the current
    weights. A gradient step of the same size diverges where :math:`\eta k\Omega > 2`.

    Args:
        parameters: weights :math:`\theta`, after the optimizer's step.
        importance: :math:`\Omega`.
        anchor: :math:`\theta^*`.
        steps: :math:`\eta k`, learning rate times stiffness, for each tensor.

    Example:
        >>> theta = [torch.tensor([3.0])]
        >>> relax_to_anchor_(theta, [torch.tensor([2.0])], [torch.ones(1)], [0.5])
        >>> theta
        [tensor([2.])]
    """
    stiff = torch._foreach_mul(list(importance), list(steps))
    share = torch._foreach_div(stiff, torch._foreach_add(stiff, 1.0))
    distance = torch._foreach_sub(list(parameters), list(anchor))
    torch._foreach_addcmul_(list(parameters), distance, share, value=-1.0)


def merge_latest_(
    importance: Sequence[Tensor],
    anchor: Sequence[Tensor],
    new_importance: Sequence[Tensor],
    parameters: Sequence[Tensor],
    decay: float = 1.0,
) -> None:
    r"""Merges a task, with one anchor at the latest weights, in place.

    .. math:: \Omega \leftarrow \gamma\Omega + \Omega_k, \qquad \theta^* \leftarrow \theta_k

    The Laplace approximation of the posterior over all tasks so far: on quadratic losses with
    :math:`\gamma = 1` it ends at the minimum of their sum. Sources: Huszár 2018 (arXiv 1712.03847);
    Schwarz et al. 2018, online EWC (arXiv 1805.06370).

    Example:
        >>> F, a = [torch.tensor([1.0])], [torch.tensor([0.0])]
        >>> merge_latest_(F, a, [torch.tensor([2.0])], [torch.tensor([0.5])], decay=0.5)
        >>> F, a
        ([tensor([2.5000])], [tensor([0.5000])])
    """
    torch._foreach_mul_(list(importance), decay)
    torch._foreach_add_(list(importance), list(new_importance))
    torch._foreach_copy_(list(anchor), list(parameters))


def merge_each_(
    importance: Sequence[Tensor],
    anchor: Sequence[Tensor],
    new_importance: Sequence[Tensor],
    parameters: Sequence[Tensor],
    decay: float = 1.0,
) -> Tensor:
    r"""Merges a task, with one anchor per task, into a single quadratic, in place.

    :math:`\sum_k \Omega_k (\theta - \theta_k)^2` is one parabola per synapse, so two tensors hold it
    exactly for any number of tasks: the summed importance and the importance-weighted mean anchor,

    .. math:: \bar\theta \leftarrow \frac{\gamma\Omega\,\bar\theta + \Omega_k\theta_k}
              {\gamma\Omega + \Omega_k}, \qquad \Omega \leftarrow \gamma\Omega + \Omega_k .

    A synapse that has no importance yet is anchored at its current weight. Source: Kirkpatrick et al. 2017
    (arXiv 1612.00796); the identity is completing the square.

    Returns:
        :math:`\sum_i \frac{\gamma\Omega\,\Omega_k}{\gamma\Omega+\Omega_k}(\bar\theta-\theta_k)^2`, a
        scalar: the growth of the part of the penalty that does not depend on the weights.

    Example:
        >>> F, a = [torch.tensor([1.0])], [torch.tensor([0.0])]
        >>> merge_each_(F, a, [torch.tensor([3.0])], [torch.tensor([4.0])])
        tensor(12.)
        >>> F, a
        ([tensor([4.])], [tensor([3.])])
    """
    growth = []
    for old, mean, new, theta in zip(importance, anchor, new_importance, parameters, strict=True):
        old.mul_(decay)
        total = old + new
        # The share of the new task; 1 where both importances are 0, so that the anchor is finite.
        share = torch.where(total > 0, new / total, torch.ones_like(total))
        distance = theta.to(mean.dtype) - mean
        growth.append((old * share * distance * distance).sum())
        mean.add_(share * distance)
        old.copy_(total)
    return stacked(growth).sum()
