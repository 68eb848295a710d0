r"""Plasticity that depends on the weight itself: large weights are consolidated.

Source: Laborieux et al. 2021, "Synaptic metaplasticity in binarized neural networks" (arXiv 2003.03533).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cl_callbacks.compiled.fused import fusable


def metaplastic_gate(weights: Sequence[Tensor], steepness: float) -> list[Tensor]:
    r"""Share :math:`f = 1 - \tanh^2(m|w|)` that a weight takes of an update towards 0.

    Args:
        weights: :math:`w`.
        steepness: :math:`m`, in inverse units of weights.

    Example:
        >>> metaplastic_gate([torch.tensor([0.0, -1.0])], 1.35)
        [tensor([1.0000, 0.2360])]
    """
    hidden = torch._foreach_mul(list(weights), steepness)
    torch._foreach_tanh_(hidden)
    torch._foreach_mul_(hidden, hidden)
    torch._foreach_neg_(hidden)
    torch._foreach_add_(hidden, 1.0)
    return list(hidden)


@fusable
def resist_shrinking_(weights: Sequence[Tensor], before: Sequence[Tensor], steepness: float) -> None:
    r"""Undoes a part of every update that has moved a weight towards 0, in place.

    .. math:: w' = w + f\,\Delta \quad\text{where } w\Delta < 0, \qquad f = 1 - \tanh^2(m|w|)

    Updates that move a weight away from 0 are kept; with :math:`m=0` all are, bit for bit.

    Args:
        weights: :math:`w+\Delta`.
        before: :math:`w`.
        steepness: :math:`m`.

    Example:
        >>> weights = [torch.tensor([0.5, 1.5])]
        >>> resist_shrinking_(weights, [torch.ones(2)], 1.35)
        >>> weights
        [tensor([0.8820, 1.5000])]
    """
    update = torch._foreach_sub(list(weights), list(before))
    hidden = torch._foreach_mul(list(before), steepness)
    if torch.compiler.is_dynamo_compiling():  # compiled, tanh takes one element after the other, unlike exp
        hidden = tuple(1.0 - 2.0 / ((2.0 * h).exp() + 1.0) for h in hidden)
    else:
        torch._foreach_tanh_(hidden)
    torch._foreach_mul_(update, hidden)
    torch._foreach_clamp_max_(update, 0.0)  # tanh(mw)Δ where the weight shrinks, else 0
    torch._foreach_addcmul_(list(weights), hidden, update, value=-1.0)
