"""Says what keeps a parameter from having a state, and what to do about it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

SPARSE_GRADIENT = "gets a sparse gradient: build its nn.Embedding with sparse=False"


def parameter_fault(parameter: Tensor) -> str | None:
    """What is wrong with a parameter, and the remedy; ``None`` for one that is dense, real and there.

    State, gradients and noise are dense and real, of the shape that the parameter has before training.

    Example:
        >>> parameter_fault(torch.ones(2, dtype=torch.int8))
        'is of torch.int8: train it in floating point of 16 bits or more'
        >>> parameter_fault(torch.ones(2)) is None
        True
    """
    if is_lazy(parameter):  # first, since it has no other attributes
        return (
            "has no shape yet, because its module is lazy: run one batch through the module before training, "
            "or build it with its number of inputs"
        )
    if parameter.is_meta:
        return "is on the meta device, which keeps no values: load it in `configure_model`"
    if parameter.layout is not torch.strided:
        return f"is stored as {parameter.layout}: build it from `to_dense()`"
    if parameter.is_complex():
        return (
            "is complex: keep its real and imaginary parts, `nn.Parameter(torch.view_as_real(w))`, and "
            "compute with `torch.view_as_complex` of that"
        )
    if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
        return f"is of {parameter.dtype}: train it in floating point of 16 bits or more"
    return None
