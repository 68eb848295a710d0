"""Results from several devices, on one of them.

The layers of a network may be placed on several devices by hand. What belongs to one weight is on the device
of that weight, and ``torch._foreach_*`` takes each tensor on its own device; but stacking and arithmetic
between tensors need one device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def stacked(values: Sequence[Tensor]) -> Tensor:
    """Stacks small tensors of one shape on the device of the first one.

    Args:
        values: at least one; each on any device.

    Example:
        >>> stacked([torch.tensor(1.0), torch.tensor(2.0)])
        tensor([1., 2.])
    """
    return torch.stack([value.to(values[0].device) for value in values])
