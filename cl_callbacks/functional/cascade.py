r"""Binary synapses with hidden levels: the longer a synapse was right, the harder it is to change.

A synapse is in one of two strengths, and in each of them at a level :math:`k=1\dots n`. A candidate event
against its strength switches it to the first level of the other strength with probability :math:`q_k`; one
that confirms it takes it a level deeper with probability :math:`p_k`:

.. math:: q_k = x^{k-1},\quad q_n = \frac{x^{n-1}}{1-x}, \qquad p_k = \frac{x^k}{1-x},\quad p_n = 0 .

At :math:`x=\frac12` and balanced events all :math:`2n` states are equally occupied. A state is written as
one signed number :math:`\pm k`.

Source: Fusi, Drew & Abbott 2005, "Cascade models of synaptically stored memories".
"""

from __future__ import annotations

import torch
from torch import Tensor


def switch_probabilities(levels: int, x: float = 0.5) -> Tensor:
    """:math:`q_k`, in float64.

    Example:
        >>> switch_probabilities(3)
        tensor([1.0000, 0.5000, 0.5000], dtype=torch.float64)
    """
    found = x ** torch.arange(levels, dtype=torch.float64)
    found[-1] /= 1 - x
    return found.clamp(max=1.0)


def deepen_probabilities(levels: int, x: float = 0.5) -> Tensor:
    """:math:`p_k`, in float64.

    Example:
        >>> deepen_probabilities(3)
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    found = x ** torch.arange(1, levels + 1, dtype=torch.float64) / (1 - x)
    found[-1] = 0.0
    return found.clamp(max=1.0)


def cascade(states: Tensor, events: Tensor, uniform: Tensor, levels: int, x: float = 0.5) -> Tensor:
    """The states of many synapses after one event each.

    Args:
        states: signed levels, from 1 to ``levels`` in size.
        events: from −1 to 1: the sign is the wanted strength, the size the probability that there is an
            event at all.
        uniform: random numbers from 0 to 1, one for each synapse.
        levels: :math:`n`.
        x: above 0 and below 1.

    Example:
        >>> cascade(torch.tensor([1.0, -1.0]), torch.ones(2), torch.zeros(2), levels=3)
        tensor([2., 1.])
    """
    strength = states.sign()
    level = states.abs()
    opposed = strength * events < 0
    # q and p as powers of x: a table would have to be looked up for each synapse.
    switch = torch.where(level == levels, min(1.0, x ** (levels - 1) / (1 - x)), x ** (level - 1))
    deepen = torch.where(level == levels, 0.0, x**level / (1 - x))
    happens = uniform < events.abs() * torch.where(opposed, switch, deepen)
    changed = torch.where(opposed, -strength, states + strength)
    return torch.where(happens, changed, states)


def transition_matrix(
    levels: int, x: float = 0.5, potentiation: float = 0.5, probability: float = 1.0
) -> Tensor:
    r"""What one event does to a distribution over states :math:`(-n\dots-1, 1\dots n)`, in float64.

    Args:
        levels: :math:`n`.
        x: above 0 and below 1.
        potentiation: share of the events that are positive.
        probability: that there is an event at all.

    Returns:
        Row-stochastic matrix of shape ``(2 levels, 2 levels)``.

    Example:
        >>> transition_matrix(1, potentiation=1.0)
        tensor([[0., 1.],
                [0., 1.]], dtype=torch.float64)
    """
    q, p = switch_probabilities(levels, x), deepen_probabilities(levels, x)
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


def memory_trace(ages: Tensor, levels: int, x: float = 0.5, probability: float = 1.0) -> Tensor:
    r"""Mean strength, towards what was stored, of a memory that so many events have come after.

    Args:
        ages: whole numbers of events since.
        levels: :math:`n`; 1 is a simple binary synapse.
        x: above 0 and below 1.
        probability: that a memory is a candidate event for a synapse at all.

    Returns:
        The signal at each age, in float64; the noise of :math:`N` synapses is :math:`1/\sqrt N`.

    Example:
        >>> memory_trace(torch.tensor([0, 1]), levels=1, probability=0.5)
        tensor([0.5000, 0.2500], dtype=torch.float64)
    """
    balanced = transition_matrix(levels, x, probability=probability)
    stored = transition_matrix(levels, x, potentiation=1.0, probability=probability)
    start = torch.full((2 * levels,), 0.5 / levels, dtype=torch.float64) @ stored
    strength = torch.ones(2 * levels, dtype=torch.float64)
    strength[:levels] = -1.0
    powers = [torch.linalg.matrix_power(balanced, int(age)) for age in ages]
    return torch.stack([start @ power @ strength for power in powers])
