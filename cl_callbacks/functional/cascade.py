r"""Binary synapses with hidden levels: the more often a synapse was confirmed, the harder it switches.

A synapse has one of two strengths, and a level :math:`k=1\dots n`. A candidate event against its strength
switches it to the first level of the other strength with probability :math:`q_k`; one that confirms it moves
it a level deeper with probability :math:`p_k`:

.. math:: q_k = x^{k-1},\quad q_n = \frac{x^{n-1}}{1-x}, \qquad p_k = \frac{x^k}{1-x},\quad p_n = 0 .

At :math:`x=\frac12` and balanced events all :math:`2n` states are equally occupied. A state is written as
one signed number :math:`\pm k`.

Source: Fusi, Drew & Abbott 2005, "Cascade models of synaptically stored memories".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cl_callbacks.compiled.fused import fusable
from cl_callbacks.tensors.finite import zero_nonfinite_


def switch_probabilities(levels: int, ratio: float = 0.5) -> Tensor:
    """Switching probability :math:`q_k` of each level, of shape ``(levels,)``, in float64.

    Example:
        >>> switch_probabilities(3)
        tensor([1.0000, 0.5000, 0.5000], dtype=torch.float64)
    """
    found = ratio ** torch.arange(levels, dtype=torch.float64)
    found[-1] /= 1 - ratio
    return found.clamp(max=1.0)


def deepen_probabilities(levels: int, ratio: float = 0.5) -> Tensor:
    """Deepening probability :math:`p_k` of each level, of shape ``(levels,)``, in float64.

    Example:
        >>> deepen_probabilities(3)
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    found = ratio ** torch.arange(1, levels + 1, dtype=torch.float64) / (1 - ratio)
    found[-1] = 0.0
    return found.clamp(max=1.0)


@fusable
def cascade_(
    states: Sequence[Tensor],
    events: Sequence[Tensor],
    uniform: Sequence[Tensor],
    levels: int,
    ratio: float = 0.5,
) -> None:
    """Applies one event to each of many synapses, in place.

    Args:
        states: signed levels, from 1 to ``levels`` in size.
        events: from −1 to 1: the sign is the wanted strength, the size the probability that the event
            occurs.
        uniform: random numbers from 0 to 1, one for each synapse.
        levels: :math:`n`.
        ratio: :math:`x`, above 0 and below 1.

    Example:
        >>> states = [torch.tensor([1.0, -1.0])]
        >>> cascade_(states, [torch.ones(2)], [torch.zeros(2)], levels=3)
        >>> states
        [tensor([2., 1.])]
    """
    # Conditions are 1 or 0: torch.where is slow on a CPU, as are indexing and powers.
    strength, level = torch._foreach_sign(list(states)), torch._foreach_abs(list(states))
    last = torch._foreach_sub(level, levels - 1)
    torch._foreach_clamp_min_(last, 0.0)
    power = torch._foreach_sub(level, 1.0)  # x^(k−1) = exp((k−1) log x)
    torch._foreach_mul_(power, math.log(ratio))
    if torch.compiler.is_dynamo_compiling():  # compiled, exponentials of a list are a pass of their own
        power = tuple(t.exp() for t in power)
    else:
        torch._foreach_exp_(power)
    # q: the power, at the last level divided by 1 − x, and p: the power times x/(1 − x), at the last level 0.
    switch = torch._foreach_mul(last, ratio / (1 - ratio))
    torch._foreach_add_(switch, 1.0)
    torch._foreach_mul_(switch, power)
    torch._foreach_clamp_max_(switch, 1.0)
    torch._foreach_sub_(last, 1.0)
    torch._foreach_mul_(power, last)
    torch._foreach_mul_(power, -ratio / (1 - ratio))
    torch._foreach_clamp_max_(power, 1.0)
    deepen = power
    # An event takes effect with its own probability times q against the strength, and times p along it.
    along = torch._foreach_mul(strength, list(events))
    against = torch._foreach_neg(along)
    torch._foreach_clamp_min_(along, 0.0)
    torch._foreach_clamp_min_(against, 0.0)
    happens = torch._foreach_mul(along, deepen)
    torch._foreach_addcmul_(happens, against, switch)
    torch._foreach_sub_(happens, list(uniform))
    torch._foreach_clamp_min_(happens, 0.0)
    torch._foreach_sign_(happens)
    # It adds the strength to the state, or sets it to minus the strength: s − s(k + 2) = −s − sk.
    torch._foreach_sign_(against)
    torch._foreach_add_(level, 2.0)
    torch._foreach_mul_(level, against)
    torch._foreach_mul_(happens, strength)
    torch._foreach_add_(list(states), happens)
    torch._foreach_addcmul_(list(states), happens, level, value=-1.0)


@fusable
def switch_weights_(
    weights: Sequence[Tensor],
    before: Sequence[Tensor],
    states: Sequence[Tensor],
    uniform: Sequence[Tensor],
    levels: int,
    ratio: float = 0.5,
) -> None:
    r"""Turns updates of binary weights into events, and the events into switches, in place.

    An update :math:`\Delta` of a weight :math:`\pm a` is an event of size :math:`\min(1, |\Delta|/2a)`
    towards its sign; updates that are not finite are ignored.

    Args:
        weights: after the update; overwritten by :math:`\pm a`.
        before: weights before the update.
        states: signed levels of the synapses, with the signs of the weights before.
        uniform: random numbers from 0 to 1, one for each synapse.
        levels: :math:`n`.
        ratio: :math:`x`, above 0 and below 1.

    Example:
        >>> weights, states = [torch.tensor([0.5, 3.0])], [torch.ones(2)]
        >>> switch_weights_(weights, [torch.ones(2)], states, [torch.full((2,), 0.2)], levels=3)
        >>> weights, states
        ([tensor([-1.,  1.])], [tensor([-1.,  2.])])
    """
    size = torch._foreach_abs(list(before))
    events = torch._foreach_sub(list(weights), list(before))
    torch._foreach_div_(events, size)
    torch._foreach_mul_(events, 0.5)
    zero_nonfinite_(events)
    torch._foreach_clamp_min_(events, -1.0)
    torch._foreach_clamp_max_(events, 1.0)
    cascade_(states, events, uniform, levels, ratio)
    torch._foreach_mul_(size, torch._foreach_sign(list(states)))
    torch._foreach_copy_(list(weights), size)


def transition_matrix(
    levels: int, ratio: float = 0.5, potentiation: float = 0.5, probability: float = 1.0
) -> Tensor:
    r"""Transition matrix of one event over the states :math:`(-n\dots-1, 1\dots n)`, in float64.

    Args:
        levels: :math:`n`.
        ratio: :math:`x`, above 0 and below 1.
        potentiation: share of the events that are positive.
        probability: that an event occurs.

    Returns:
        Row-stochastic matrix of shape ``(2 levels, 2 levels)``.

    Example:
        >>> transition_matrix(1, potentiation=1.0)
        tensor([[0., 1.],
                [0., 1.]], dtype=torch.float64)
    """
    q, p = switch_probabilities(levels, ratio), deepen_probabilities(levels, ratio)
    up = torch.zeros(2 * levels, 2 * levels, dtype=torch.float64)
    for k in range(levels):
        negative, positive = levels - 1 - k, levels + k
        up[negative, levels] = q[k]
        if k + 1 < levels:
            up[positive, positive + 1] = p[k]
    up += torch.diag(1 - up.sum(1))
    down = up.flip(0, 1)
    event = potentiation * up + (1 - potentiation) * down
    return probability * event + (1 - probability) * torch.eye(2 * levels, dtype=torch.float64)


def cascade_memory_trace(ages: Tensor, levels: int, ratio: float = 0.5, probability: float = 1.0) -> Tensor:
    r"""Mean strength, in the direction of a stored memory, after a number of later events.

    Args:
        ages: integer numbers of later events.
        levels: :math:`n`; 1 is a simple binary synapse.
        ratio: :math:`x`, above 0 and below 1.
        probability: that a memory is a candidate event for a synapse.

    Returns:
        The signal at each age, in float64; the noise of :math:`N` synapses is :math:`1/\sqrt N`.

    Example:
        >>> cascade_memory_trace(torch.tensor([0, 1]), levels=1, probability=0.5)
        tensor([0.5000, 0.2500], dtype=torch.float64)
    """
    balanced = transition_matrix(levels, ratio, probability=probability)
    stored = transition_matrix(levels, ratio, potentiation=1.0, probability=probability)
    start = torch.full((2 * levels,), 0.5 / levels, dtype=torch.float64) @ stored
    strength = torch.ones(2 * levels, dtype=torch.float64)
    strength[:levels] = -1.0
    powers = [torch.linalg.matrix_power(balanced, int(age)) for age in ages]
    return torch.stack([start @ power @ strength for power in powers])
