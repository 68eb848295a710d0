"""Slow importance by the sensitivity of the output, memory aware synapses, one sample at a time.

Nothing here changes the mode of the model: the caller decides between ``eval()`` and ``train()``.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tests.references.ewc import Tensors
from tests.references.fisher import gradient, trainable, zeros


def mas_importance(
    model: nn.Module,
    inputs: Tensor,
    parameters: Tensors | None = None,
    norm: Literal["squared", "l2"] = "squared",
) -> Tensors:
    """Average the absolute gradient of the output's norm, over all its entries, over the samples.

    Omega_i = 1/N sum_n |d ||f(x_n)||_2^2 / d theta_i|, or of ||f(x_n)||_2 if norm is "l2".
    """
    if norm not in ("squared", "l2"):
        raise ValueError("norm must be 'squared' or 'l2'")
    parameters = trainable(model) if parameters is None else parameters
    importance = zeros(parameters)
    for n in range(len(inputs)):
        output = model(inputs[n : n + 1])
        # The norm of the output as one vector has, unlike a square root, a gradient (of zero) at zero.
        value = (output**2).sum() if norm == "squared" else output.reshape(-1).norm()
        for name, g in gradient(value, parameters).items():
            importance[name] += g.abs() / len(inputs)
    return importance
