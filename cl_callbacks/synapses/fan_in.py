r"""The scale of a layer's weights, :math:`1/\sqrt n` where each of its units has :math:`n` inputs.

Weights of this size keep activations of one size through layers of any width, and torch's own initialisation
is in proportion to it. State in units of it means the same in every layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

# What holds the matrix of a layer: itself, or what pruning, weight_norm and parametrizations make it from.
_MATRICES = ("{}", "{}_orig", "{}_v", "parametrizations.{}.original", "parametrizations.{}.original1")


def fan_in(name: str, model: Mapping[str, Tensor]) -> int:
    """Number of inputs of each unit of the layer that a parameter belongs to.

    It is the number of weights of a unit, as torch's initialisation counts it, and that of the layer for a
    bias. A layer without a weight matrix, such as a norm, counts its units: as many as the next layer has
    inputs.

    Args:
        name: of the parameter.
        model: all parameters, by plain name; of one that is sharded the whole shape counts.

    Example:
        >>> from torch import nn
        >>> conv = dict(nn.Conv2d(4, 8, 3).named_parameters())
        >>> fan_in("weight", conv), fan_in("bias", conv)
        (36, 36)
    """
    layer, dot, own = name.rpartition(".")
    weight = own.removesuffix("_orig").replace("bias", "weight")
    names = (layer + dot + form.format(weight) for form in _MATRICES)
    matrix = next((model[found] for found in names if found in model), model[name])
    return math.prod(matrix.shape[1:]) if matrix.ndim > 1 else max(1, model[name].numel())


def weight_scale(name: str, model: Mapping[str, Tensor], factor: float = 1.0) -> float:
    r"""A number in units of the scale of a parameter's layer: :math:`c/\sqrt n`.

    Args:
        name: of the parameter.
        model: all parameters, by plain name.
        factor: :math:`c`.

    Example:
        >>> from torch import nn
        >>> linear = dict(nn.Linear(100, 3).named_parameters())
        >>> weight_scale("bias", linear, 2.0)
        0.2
    """
    return factor / math.sqrt(fan_in(name, model))
