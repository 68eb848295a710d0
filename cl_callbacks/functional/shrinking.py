"""Shrinking of weights, and perturbation by noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cl_callbacks.compiled.fused import fusable


@fusable(numbers=["shrink", "stds"])
def shrink_and_perturb_(
    weights: Sequence[Tensor],
    noise: Sequence[Tensor] | None,
    shrink: float | Sequence[float],
    stds: Sequence[float],
) -> None:
    r"""Shrinks weights and adds noise to them, in place: :math:`\theta \leftarrow a\,\theta + s\,\xi`.

    Source: Ash & Adams 2020, "On warm-starting neural network training" (arXiv 1910.08475).

    Args:
        weights: :math:`\theta`.
        noise: :math:`\xi`, standard normal numbers of the shapes of the weights; ``None`` for none.
        shrink: :math:`a`, or one for each tensor; 1 with an :math:`s` of 0 changes nothing.
        stds: :math:`s`, one for each tensor.

    Example:
        >>> theta = [torch.tensor([4.0, 0.0])]
        >>> shrink_and_perturb_(theta, [torch.tensor([1.0, -1.0])], 0.5, [0.1])
        >>> theta
        [tensor([ 2.1000, -0.1000])]
    """
    torch._foreach_mul_(list(weights), shrink)
    if noise is not None:
        torch._foreach_add_(list(weights), list(torch._foreach_mul(list(noise), stds)))
