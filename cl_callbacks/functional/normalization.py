r"""Units of importance: what makes one strength serve other networks, data and tasks.

The Fisher information of a confident network vanishes, its scale differs by orders of magnitude between
data sets, estimators and even the tasks of a sequence, and a strength in its units means another pull
each time. Divided by its mean over the weights,

.. math:: \hat\Omega_i = \frac{\Omega_i}{\frac1n\sum_j\Omega_j},

importance says how much a synapse matters *beside the others*, and the strength is the pull on an average
one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cl_callbacks.tensors.devices import stacked


def sum_and_number(importance: Sequence[Tensor]) -> Tensor:
    r"""Sum :math:`\sum_j\Omega_j` of the importance of all synapses, and their number: a tensor of two.

    Args:
        importance: of any shapes, on one device or several; some may be empty.

    Returns:
        Float64 tensor ``[sum, number]`` on the first one's device: sums of two parts of a network add up.

    Example:
        >>> sum_and_number([torch.ones(2, 2), torch.tensor([8.0])])
        tensor([12.,  5.], dtype=torch.float64)
    """
    # In double precision, since half the synapses may be a millionth of the rest.
    total = stacked([t.sum(dtype=torch.float64) for t in importance]).sum()
    # Filled on the device, since the host would wait for a copy.
    return torch.stack([total, total.new_full((), sum(t.numel() for t in importance))])
