"""Fusi, Drew & Abbott (2005): binary synapses with a cascade of levels, each harder to switch.

The state of a synapse is its sign times its level: s k, s = -1 or +1, k = 1..n.
"""

from __future__ import annotations


def checked(level: int, levels: int) -> None:
    """Raise an error for a level outside of the cascade.

    1 <= k <= n.
    """
    if not 1 <= level <= levels:
        raise ValueError("the level must lie between 1 and the number of levels")


def switch_probability(level: int, levels: int, x: float = 0.5) -> float:
    """Return the probability of a switch by an event against the sign.

    q_i = x^(i - 1) for i < n, q_n = x^(n - 1) / (1 - x), at most 1.
    """
    checked(level, levels)
    q = x ** (level - 1)
    if level == levels:
        q = x ** (levels - 1) / (1 - x)
    return min(1.0, q)


def deepen_probability(level: int, levels: int, x: float = 0.5) -> float:
    """Return the probability of going one level deeper by an event along the sign.

    p_i = x^i / (1 - x) for i < n, p_n = 0, at most 1.
    """
    checked(level, levels)
    if level == levels:
        return 0.0
    return min(1.0, x**level / (1 - x))


def step(state: int, event: float, uniform: float, levels: int, x: float = 0.5) -> int:
    """Return the state after one candidate event, given one uniform number u in [0, 1).

    s k -> -s if s event < 0 and u < |event| q_k; s k -> s (k + 1) if s event > 0 and u < |event| p_k.
    """
    sign, level = (1 if state > 0 else -1), abs(state)
    checked(level, levels)
    if event == 0:
        return state
    direction = 1 if event > 0 else -1
    if direction != sign:
        if uniform < abs(event) * switch_probability(level, levels, x):
            return direction * 1
    elif uniform < abs(event) * deepen_probability(level, levels, x):
        return sign * (level + 1)
    return state


def transition_matrix(levels: int, x: float = 0.5, potentiation: float = 0.5) -> list[list[float]]:
    """Return T[i][j], the probability of going from state i to state j in one event of size 1.

    T[s k][-s] = P(-s) q_k, T[s k][s (k + 1)] = P(s) p_k, T[s k][s k] = the rest; P(+) = potentiation;
    the states in the order -n..-1, +1..+n.
    """
    states = [*range(-levels, 0), *range(1, levels + 1)]
    matrix = []
    for state in states:
        sign, level = (1 if state > 0 else -1), abs(state)
        along = potentiation if sign > 0 else 1 - potentiation
        switch = (1 - along) * switch_probability(level, levels, x)
        deepen = along * deepen_probability(level, levels, x)
        row = [0.0 for _ in states]
        row[states.index(-sign)] += switch
        if level < levels:
            row[states.index(sign * (level + 1))] += deepen
        row[states.index(state)] += 1 - switch - deepen
        matrix.append(row)
    return matrix
