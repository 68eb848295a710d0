"""Laborieux et al. (2021): the larger a weight, the harder it is to move towards zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gated(before: Tensor, after: Tensor, steepness: float) -> Tensor:
    """Return the weights after a step whose moves towards zero are damped.

    w + delta (1 - tanh(steepness |w|)^2) if delta w < 0, else w + delta; w = before, delta = after - before.
    """
    if before.shape != after.shape:
        raise ValueError("the weights must have the same shape before and after")
    old, proposed = before.detach().double().reshape(-1), after.detach().double().reshape(-1)
    new = []
    for i in range(old.numel()):
        w, target = float(old[i].item()), float(proposed[i].item())
        delta = target - w
        if delta * w < 0:
            new.append(w + delta * (1 - math.tanh(steepness * abs(w)) ** 2))
        else:
            new.append(target)
    return torch.tensor(new, dtype=torch.float64).reshape(before.shape)
