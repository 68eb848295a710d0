"""A scale at which cotangents of float16 neither underflow nor overflow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import get_total_norm

from cl_callbacks.gradients.precision import wide_dtype
from cl_callbacks.tensors.containers import flat_tensors
from cl_callbacks.tensors.shards import extremes, total

T = TypeVar("T")
_HIGHEST, _LOWEST = 12, -12
_SMALLEST = 1e-20
"""Cotangents below it have squares that are 0 in float32."""


class CotangentScale:
    r"""Pulls cotangents back at a scale of their own, which is a power of two.

    Per-sample gradients are linear in the cotangents, :math:`J^\top v = 2^{-k}\,J^\top(2^k v)`, exactly so in
    floating point while nothing leaves the range. The smallest numbers of float16 are 6e-8, and cotangents of
    a network that is certain are smaller. So their largest entry is scaled to about :math:`2^{12}`, and to a
    quarter of that as often as what comes back is not finite. The exponent that was right is kept.

    Args:
        group: of processes that pull back together, and must agree on the scale.

    Attributes:
        active: whether there is anything to scale: float16 on the way. Else cotangents are passed as they
            are, and nothing waits for the device.

    Example:
        >>> weight, scale = torch.ones(1, requires_grad=True), CotangentScale()
        >>> outputs = (weight.half() * 1e-4).half().float()
        >>> pull = lambda v: torch.autograd.grad(outputs, weight, v[0], retain_graph=True)
        >>> pull([torch.tensor([1e-6])])[0].item()
        0.0
        >>> scale.active = True
        >>> (gradient,), unscale = scale.pull_back(pull, [torch.tensor([1e-6])])
        >>> f"{(gradient * unscale).item():.2g}"
        '1e-10'
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.active = False
        self._exponent = _HIGHEST

    def pull_back(
        self, function: Callable[[list[Tensor]], T], cotangents: Sequence[Tensor]
    ) -> tuple[T, Tensor | None]:
        """Calls a function that is linear in the cotangents, at a scale at which what it returns is finite.

        Args:
            function: from scaled cotangents to tensors in any container.
            cotangents: at least float32, and finite.

        Returns:
            What the function returned last; the factor that takes the scale out again, or ``None`` if there
            is none. It is exact in float32.
        """
        if not self.active or not any(v.numel() for v in cotangents):
            return function(list(cotangents)), None
        unit = self._unit(cotangents)
        for exponent in range(self._exponent, _LOWEST - 1, -2):
            scale = unit * 2.0**exponent
            pulled = function([v * scale.to(v.device) for v in cotangents])
            if self._all_finite(pulled, scale):
                self._exponent = exponent
                break
        return pulled, scale.reciprocal()

    def _unit(self, cotangents: Sequence[Tensor]) -> Tensor:
        """The power of two that takes the largest entry to between a half and one."""
        _, largest = extremes([v.detach().abs() for v in cotangents], self.group)
        largest = largest.clamp_min(_SMALLEST)
        # A quotient that is a power of two is exact, which a power of a float need not be.
        return torch.frexp(largest).mantissa / largest

    def _all_finite(self, tree: object, like: Tensor) -> bool:
        tensors = [t.detach() for t in flat_tensors(tree) if t.numel()]
        largest = get_total_norm(tensors, torch.inf).to(like) if tensors else torch.zeros_like(like)
        return not total((~largest.isfinite()).long(), self.group)


def unscaled(tensor: Tensor, factor: Tensor | None) -> Tensor:
    """The tensor times a factor, in at least float32, or as it is if there is none.

    Example:
        >>> unscaled(torch.ones(1).half(), torch.tensor(0.5))
        tensor([0.5000])
    """
    return tensor if factor is None else tensor.to(wide_dtype(tensor)) * factor.to(tensor.device)
