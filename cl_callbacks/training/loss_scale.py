"""Whether gradients are multiplied by the loss scale of mixed precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState

from cl_callbacks.tensors.shards import total


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


def unscale_and_check(
    scaler: GradScaler, gradients: Sequence[Tensor], group: dist.ProcessGroup | None = None
) -> None:
    """Divides gradients of a scaled loss by the scale, in place, and skips the step if one is not finite.

    They are to be added to gradients that the scaler has unscaled, and checked, already. Nothing waits for
    the device. Of gradients that are sharded over a ``group`` of processes, it is skipped on all of them.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer, scaler = torch.optim.SGD([weight]), GradScaler("cpu")
        >>> scaler.scale(weight.sum()).backward(); scaler.unscale_(optimizer)
        >>> unscale_and_check(scaler, [torch.tensor([torch.inf])])
        >>> scaler.step(optimizer); weight.tolist()
        [1.0]
    """
    by_device: dict[torch.device, list[Tensor]] = {}
    for gradient in gradients:
        by_device.setdefault(gradient.device, []).append(gradient)
    for device, found in by_device.items():
        overflow = torch.zeros((), device=device)
        scale = scaler.scale(torch.ones((), device=device))
        torch._amp_foreach_non_finite_check_and_unscale_(found, overflow, scale.reciprocal())
        overflow = total(overflow, group)
        for state in scaler._per_optimizer_states.values():
            if state["stage"] is OptState.UNSCALED:
                for device, so_far in state["found_inf_per_device"].items():
                    so_far.add_(overflow.to(device))
