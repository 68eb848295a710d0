r"""Importance from the path of the weights during training: the contribution of each to the fall of the loss.

Along a step from :math:`\theta` to :math:`\theta+\Delta` the loss changes by about
:math:`\sum_i g_i\Delta_i`, so :math:`-g_i\Delta_i` is the contribution of synapse :math:`i` to its fall. Here
:math:`g` is the gradient of the task's loss alone, and :math:`\Delta` the realised update, with the
optimizer's momentum, clipping and penalties.

Sources: Zenke et al. 2017, synaptic intelligence (arXiv 1703.04200); Chaudhry et al. 2018, RWalk
(1801.10112).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cl_callbacks.compiled.fused import fusable
from cl_callbacks.functional.anchoring import add_quadratic_pull_
from cl_callbacks.tensors.finite import take_finite_


@fusable
def add_path_(
    path: Sequence[Tensor], gradients: Sequence[Tensor], updates: Sequence[Tensor], decay: float = 1.0
) -> None:
    r"""Adds a step to the path integral, in place: :math:`\omega \leftarrow \beta\omega - g\,\Delta`.

    Args:
        path: :math:`\omega`.
        gradients: :math:`g`, of the task's loss at the weights before the step.
        updates: :math:`\Delta`, weights after the step minus weights before it.
        decay: :math:`\beta`.

    Example:
        >>> path = [torch.zeros(1)]
        >>> add_path_(path, [torch.tensor([2.0])], [torch.tensor([-0.5])])
        >>> path
        [tensor([1.])]
    """
    if decay != 1.0:
        torch._foreach_mul_(list(path), decay)
    torch._foreach_addcmul_(list(path), list(gradients), list(updates), value=-1.0)


def without_decay(
    updates: Sequence[Tensor], parameters: Sequence[Tensor], rates: Sequence[float]
) -> list[Tensor]:
    r"""Update without its decoupled weight decay: :math:`\Delta+\eta w\,\theta`.

    AdamW moves every weight by :math:`-\eta w\theta` whatever the gradient, so this part of the update is
    not due to the loss.

    Args:
        updates: :math:`\Delta`, weights after the step minus weights before it.
        parameters: weights after the step; those before it are :math:`\theta`.
        rates: :math:`\eta w`, learning rate times weight decay, for each tensor.

    Example:
        >>> without_decay([torch.tensor([-0.5])], [torch.tensor([1.5])], [0.1])
        [tensor([-0.3000])]
    """
    decay = torch._foreach_sub(list(parameters), list(updates))
    torch._foreach_mul_(decay, list(rates))
    return list(torch._foreach_add(list(updates), decay))


def path_importance(
    path: Sequence[Tensor], parameters: Sequence[Tensor], anchor: Sequence[Tensor], damping: float
) -> list[Tensor]:
    r"""Importance of synaptic intelligence, :math:`\frac{\max(0, \omega)}{(\theta-\theta^*)^2 + \xi}`.

    For small steps on a diagonal quadratic with curvature :math:`a` it is :math:`a/2`.

    Args:
        path: :math:`\omega`, summed since the weights were at the anchor.
        parameters: :math:`\theta`.
        anchor: :math:`\theta^*`.
        damping: :math:`\xi`, in units of squared weights.

    Example:
        >>> path_importance([torch.tensor([1.0, -1.0])], [torch.ones(2)], [torch.zeros(2)], damping=1.0)
        [tensor([0.5000, 0.0000])]
    """
    squares = torch._foreach_sub(list(parameters), list(anchor))
    torch._foreach_mul_(squares, squares)
    torch._foreach_add_(squares, damping)
    found = torch._foreach_clamp_min(list(path), 0.0)
    torch._foreach_div_(found, squares)
    return list(found)


@fusable(numbers=["stiffness", "max_importance"])
def add_path_pull_(
    gradients: Sequence[Tensor],
    parameters: Sequence[Tensor],
    path: Sequence[Tensor],
    anchor: Sequence[Tensor],
    stiffness: float | Sequence[float],
    damping: float,
    max_importance: float | Sequence[float] | None = None,
) -> None:
    r"""Adds the pull :math:`k\,\Omega(\theta-\theta^*)` of a path integral's importance, in place.

    :math:`\Omega` is :func:`path_importance` at the current weights.

    Args:
        gradients: tensors to which it is added, usually the ``.grad`` of the parameters.
        parameters: :math:`\theta`.
        path: :math:`\omega`.
        anchor: :math:`\theta^*`.
        stiffness: :math:`k`, or one for each tensor.
        damping: :math:`\xi`.
        max_importance: the largest :math:`\Omega`, or one for each tensor; ``None`` for no limit.

    Example:
        >>> g, theta, path = [torch.zeros(1)], [torch.tensor([2.0])], [torch.tensor([10.0])]
        >>> add_path_pull_(g, theta, path, [torch.zeros(1)], stiffness=3.0, damping=1.0)
        >>> g
        [tensor([12.])]
    """
    importance = path_importance(path, parameters, anchor, damping)
    add_quadratic_pull_(gradients, parameters, importance, anchor, stiffness, max_importance)


@fusable
def add_score_(
    score: Sequence[Tensor],
    path: Sequence[Tensor],
    fisher: Sequence[Tensor],
    start: Sequence[Tensor],
    parameters: Sequence[Tensor],
    damping: float,
) -> None:
    r"""Ends a window of RWalk, in place: adds the fall of the loss per unit of movement to the score.

    .. math:: s \leftarrow s + \frac{\max(0, \omega)}{\frac12 F(\theta-\theta_0)^2 + \xi},
              \qquad \omega \leftarrow 0, \qquad \theta_0 \leftarrow \theta

    The movement is that of the output distribution, whose KL divergence is about
    :math:`\frac12 F(\theta-\theta_0)^2`. This is the paper's form; its released code omits the factor
    :math:`\frac12`. The window of a synapse whose weight is not finite stays open.

    Args:
        score: :math:`s`.
        path: :math:`\omega` of the window.
        fisher: :math:`F`.
        start: :math:`\theta_0`, weights at the window's start.
        parameters: :math:`\theta`.
        damping: :math:`\xi`.

    Example:
        >>> score, path = [torch.zeros(1)], [torch.tensor([3.0])]
        >>> start, theta = [torch.zeros(1)], [torch.ones(1)]
        >>> add_score_(score, path, [torch.tensor([2.0])], start, theta, damping=0.5)
        >>> score, path, start
        ([tensor([2.])], [tensor([0.])], [tensor([1.])])
    """
    distance = torch._foreach_sub(list(parameters), list(start))
    divergence = torch._foreach_mul(distance, distance)
    torch._foreach_mul_(divergence, list(fisher))
    torch._foreach_mul_(divergence, 0.5)
    torch._foreach_add_(divergence, damping)
    new = torch._foreach_addcdiv(list(score), torch._foreach_clamp_min(list(path), 0.0), divergence)
    nothing = torch._foreach_mul(distance, 0.0)  # NaN where the weight is not finite
    torch._foreach_add_(new, nothing)
    take_finite_(score, new)
    take_finite_(path, nothing)
    take_finite_(start, parameters)


def min_max(tensors: Sequence[Tensor], least: Tensor, greatest: Tensor) -> list[Tensor]:
    """Scales tensors together to the range from 0, their least value, to 1, their greatest.

    Args:
        tensors: of any shapes.
        least: the smallest value of all tensors, a scalar; on any device, as each of the tensors.
        greatest: the largest one.

    Example:
        >>> min_max([torch.tensor([1.0, 2.0]), torch.tensor([5.0])], torch.tensor(1.0), torch.tensor(5.0))
        [tensor([0.0000, 0.2500]), tensor([1.])]
    """
    span = greatest - least
    found = []
    for t in tensors:
        low, width = least.to(t.device), span.to(t.device)
        found.append(torch.where(width > 0, (t - low) / width, 0.0))
    return found
