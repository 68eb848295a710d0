"""Whether gradients are multiplied by the loss scale of mixed precision."""

from __future__ import annotations

from typing import Any

from torch.amp.grad_scaler import GradScaler, OptState


def is_unscaled(scaler: GradScaler, optimizer: Any) -> bool:
    """Whether a scaler has unscaled the gradients of an optimizer that is about to step.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer, scaler = torch.optim.SGD([weight]), GradScaler("cpu")
        >>> scaler.scale(weight.sum()).backward()
        >>> is_unscaled(scaler, optimizer)
        False
        >>> scaler.unscale_(optimizer)
        >>> is_unscaled(scaler, optimizer)
        True
    """
    states = scaler._per_optimizer_states  # there is no public name for it
    return not scaler.is_enabled() or (
        id(optimizer) in states and states[id(optimizer)]["stage"] is OptState.UNSCALED
    )
