"""Benna & Fusi (2016): each synapse as a chain of beakers of growing size joined by narrowing tubes."""

from __future__ import annotations

import torch
from torch import Tensor


def scalars(tensor: Tensor) -> list[float]:
    """Return the elements as Python floats, in order."""
    return [float(element) for element in tensor.detach().double().reshape(-1).tolist()]


def tensor_like(elements: list[float], shaped: Tensor) -> Tensor:
    """Return the elements as a float64 tensor of the given tensor's shape."""
    return torch.tensor(elements, dtype=torch.float64).reshape(shaped.shape)


def capacities(beakers: int, ratio: float) -> list[float]:
    """Return the size of each beaker.

    C_k = ratio^(k - 1), k = 1..m.
    """
    return [ratio ** (k - 1) for k in range(1, beakers + 1)]


def conductances(beakers: int, coupling: float, ratio: float, leak: bool) -> list[float]:
    """Return the width of the tube behind each beaker, the last of which is the leak.

    g_k = coupling ratio^-(k - 1), k = 1..m, between the beakers k and k + 1; g_m = 0 without a leak.
    """
    widths = [coupling * ratio ** -(k - 1) for k in range(1, beakers + 1)]
    if not leak:
        widths[-1] = 0.0
    return widths


def flow(
    levels: list[Tensor], capacities: list[float], conductances: list[float], gate: Tensor | None = None
) -> list[Tensor]:
    """Return the levels after one explicit Euler step, all beakers from the old levels.

    C_k du_k = h (g_(k-1) (u_(k-1) - u_k) - g_k (u_k - u_(k+1))), g_0 = 0, u_(m+1) = 0, h the gate or 1.
    """
    m = len(levels)
    if not len(capacities) == len(conductances) == m:
        raise ValueError("there must be one capacity and one conductance for each beaker")
    if any(level.shape != levels[0].shape for level in levels):
        raise ValueError("all beakers must have the same shape")
    if gate is not None and gate.shape != levels[0].shape:
        raise ValueError("the gate must have the shape of the beakers")
    old = [scalars(level) for level in levels]
    new: list[list[float]] = [[] for _ in range(m)]
    for synapse in range(levels[0].numel()):
        h = 1.0 if gate is None else scalars(gate)[synapse]
        # Index 0 and m + 1 stand for the empty ends before the first and behind the last beaker.
        u = [0.0] + [old[k][synapse] for k in range(m)] + [0.0]
        c = [0.0, *capacities]
        g = [0.0, *conductances]
        for k in range(1, m + 1):
            inflow = h * g[k - 1] * (u[k - 1] - u[k])
            outflow = h * g[k] * (u[k] - u[k + 1])
            new[k - 1].append(u[k] + (inflow - outflow) / c[k])
    return [tensor_like(elements, levels[0]) for elements in new]


def impulse_response(steps: int, beakers: int, coupling: float, ratio: float, leak: bool) -> list[float]:
    """Return the level of the first beaker 0, 1, ..., steps steps after a unit change of it.

    u(0) = (1, 0, ..., 0); r(t) = u_1(t).
    """
    sizes, widths = capacities(beakers, ratio), conductances(beakers, coupling, ratio, leak)
    levels = [torch.tensor([1.0 if k == 1 else 0.0], dtype=torch.float64) for k in range(1, beakers + 1)]
    response = [levels[0].item()]
    for _ in range(steps):
        levels = flow(levels, sizes, widths)
        response.append(levels[0].item())
    return response
