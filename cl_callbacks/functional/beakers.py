r"""A synapse as a chain of beakers: memory over many timescales in one conserved quantity.

The weight is the level :math:`u_1` of the first of :math:`m` beakers. Each is joined to the next by a tube;
along the chain beakers grow and tubes narrow, so that changes of the weight flow slowly into the deep beakers
and back:

.. math:: C_k\,\dot u_k = g_{k-1}(u_{k-1}-u_k) - g_k(u_k-u_{k+1}), \qquad
          C_k = r^{k-1}, \quad g_k = g_1 r^{-(k-1)}.

Beaker :math:`k` follows the weight within :math:`C_k/g_k = r^{2(k-1)}/g_1` steps, so that a trace fades as
:math:`t^{-1/2}` up to the last of these, instead of exponentially.

Source: Benna & Fusi 2016, "Computational principles of synaptic memory consolidation".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from cl_callbacks.compiled.fused import fusable
from cl_callbacks.tensors.finite import finite


def capacities(beakers: int, ratio: float = 2.0) -> list[float]:
    r"""Capacity :math:`C_k = r^{k-1}` of each beaker.

    Example:
        >>> capacities(3)
        [1.0, 2.0, 4.0]
    """
    return [ratio**k for k in range(beakers)]


def conductances(beakers: int, coupling: float, ratio: float = 2.0, leak: bool = True) -> list[float]:
    r"""Conductance :math:`g_k = g_1 r^{-(k-1)}` from each beaker to the next, and from the last to the drain.

    Args:
        beakers: :math:`m`, at least 1.
        coupling: :math:`g_1`, in shares of the first beaker per step.
        ratio: :math:`r`.
        leak: whether the last beaker is drained; without, the flow conserves :math:`\sum_k C_ku_k`.

    Example:
        >>> conductances(3, 0.5)
        [0.5, 0.25, 0.125]
        >>> conductances(3, 0.5, leak=False)
        [0.5, 0.25, 0.0]
    """
    found = [coupling * ratio**-k for k in range(beakers)]
    return found if leak else [*found[:-1], 0.0]


def timescales(beakers: int, coupling: float, ratio: float = 2.0) -> list[float]:
    r"""Timescale :math:`C_k/g_k` of each beaker, in steps.

    Example:
        >>> timescales(3, 0.5)
        [2.0, 8.0, 32.0]
    """
    return [ratio ** (2 * k) / coupling for k in range(beakers)]


def largest_coupling(ratio: float = 2.0) -> float:
    """Largest coupling for which a step of the flow never overshoots, for any number of beakers.

    At most half of each beaker flows out: then no eigenvalue of a step is negative (Gershgorin).

    Example:
        >>> largest_coupling(2.0), largest_coupling(1.0)
        (0.5, 0.25)
    """
    return 0.5 / max(1.0, (1 + 1 / ratio) / ratio)


@fusable
def flow_(
    levels: Sequence[Sequence[Tensor]],
    capacities: Sequence[float],
    conductances: Sequence[float],
    gates: Sequence[Tensor] | None = None,
    hold_first: bool = False,
) -> None:
    r"""Takes one step of the flow between all beakers of many synapses, in place.

    Every flow is that of the levels before the step, so :math:`\sum_k C_ku_k` changes by the leak alone.
    There is no flow to or from a weight that is not finite.

    Args:
        levels: :math:`u_k`: for each beaker one tensor per parameter, the weights first.
        capacities: :math:`C_k`.
        conductances: :math:`g_k`.
        gates: factor on all flows of each synapse, from 0 to 1; default: 1.
        hold_first: leave the first level as it is, while the others follow it.

    Example:
        >>> weight, slow = [torch.tensor([1.0])], [torch.tensor([0.0])]
        >>> flow_([weight, slow], capacities(2), conductances(2, 0.5, leak=False))
        >>> weight, slow
        ([tensor([0.5000])], [tensor([0.2500])])
    """
    weights = list(levels[0])  # converted once, where they are narrower than their beakers
    wide = [u.to(torch.promote_types(u.dtype, v.dtype)) for u, v in zip(weights, levels[-1], strict=True)]
    rows = [wide, *map(list, levels[1:])]
    inflow: list[Tensor] | tuple[Tensor, ...] = []
    for k, level in enumerate(rows):
        flowed_in = inflow
        outflow = torch._foreach_sub(level, rows[k + 1]) if k + 1 < len(rows) else level
        if gates is not None:
            outflow = torch._foreach_mul(outflow, list(gates))
        if k == 0:
            outflow = [finite(flow) for flow in outflow]
        if conductances[k] and (k > 0 or not hold_first):
            torch._foreach_add_(level, outflow, alpha=-conductances[k] / capacities[k])
        if flowed_in:
            torch._foreach_add_(level, flowed_in, alpha=conductances[k - 1] / capacities[k])
        inflow = outflow
    converted = [i for i, u in enumerate(weights) if wide[i] is not u and not hold_first]
    if converted:
        torch._foreach_copy_([weights[i] for i in converted], [wide[i] for i in converted])


def level_differences(levels: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    r"""Absolute differences between the levels of neighbouring beakers, :math:`|u_k - u_{k+1}|`.

    Args:
        levels: :math:`u_k`: for each beaker one tensor per parameter, the weights first.

    Returns:
        For each pair of neighbours one tensor per parameter.

    Example:
        >>> level_differences([[torch.tensor([1.0])], [torch.tensor([3.0])], [torch.tensor([2.5])]])
        [[tensor([2.])], [tensor([0.5000])]]
    """
    found = [torch._foreach_sub(list(upper), list(lower)) for upper, lower in pairwise(levels)]
    for differences in found:
        torch._foreach_abs_(differences)
    return list(map(list, found))


def flow_matrix(capacities: Sequence[float], conductances: Sequence[float]) -> Tensor:
    r"""Matrix :math:`M` of shape ``(m, m)`` of a step of :func:`flow_`, :math:`u \leftarrow Mu`, in float64.

    Example:
        >>> flow_matrix([1.0, 2.0], [0.5, 0.0])
        tensor([[0.5000, 0.5000],
                [0.2500, 0.7500]], dtype=torch.float64)
    """
    c = torch.tensor(capacities, dtype=torch.float64)
    g = torch.tensor(conductances, dtype=torch.float64)
    flows = torch.diag(g) + torch.diag(torch.cat([g.new_zeros(1), g[:-1]]))
    flows -= torch.diag(g[:-1], 1) + torch.diag(g[:-1], -1)
    return torch.eye(len(c), dtype=c.dtype) - flows / c[:, None]


def beaker_memory_trace(
    ages: Tensor, capacities: Sequence[float], conductances: Sequence[float]
) -> tuple[Tensor, float]:
    r"""Remainder in the weight of a unit change made :math:`t` steps ago, :math:`r(t) = (M^t)_{11}`.

    If each step stores one memory of random sign, the signal-to-noise ratio of one of age :math:`t` over
    :math:`N` synapses is :math:`\sqrt N\,r(t)/\sqrt{\sum_s r(s)^2}`.

    Args:
        ages: :math:`t`, in steps.
        capacities: :math:`C_k`.
        conductances: :math:`g_k`; the last must not be 0, or the sum diverges.

    Returns:
        :math:`r` at the ages, in float64, and :math:`\sum_{s\ge0}r(s)^2`.

    Example:
        >>> beaker_memory_trace(torch.tensor([0, 1]), [1.0], [0.5])
        (tensor([1.0000, 0.5000], dtype=torch.float64), 1.33...)
    """
    roots = torch.tensor(capacities, dtype=torch.float64).sqrt()
    symmetric = roots[:, None] * flow_matrix(capacities, conductances) / roots
    eigenvalues, vectors = torch.linalg.eigh((symmetric + symmetric.T) / 2)
    shares = vectors[0] ** 2
    trace = (shares * eigenvalues ** ages.to(torch.float64)[..., None]).sum(-1)
    energy = shares @ (1 / (1 - torch.outer(eigenvalues, eigenvalues))) @ shares
    return trace, energy.item()
