"""Sums over all processes within a training step, for which the host does not wait for the device.

Lightning's ``strategy.reduce`` calls a barrier before each reduction, for which the host waits.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor


def sum_of_processes(trainer: Trainer, value: float) -> float | Tensor:
    """Sum of a number over all processes, a scalar on the device; the number itself if there is only one.

    A collective: all processes have to call it.

    Example:
        >>> sum_of_processes(Trainer(logger=False, enable_checkpointing=False), 3.0)
        3.0
    """
    if trainer.world_size == 1:
        return value
    total = torch.full((), value, device=trainer.strategy.root_device)  # filled there, and not copied
    dist.all_reduce(total)
    return total


def mean_of_processes_(trainer: Trainer, tensor: Tensor) -> None:
    """Replaces a tensor by its mean over all processes, all of which have to call it.

    Example:
        >>> tensor = torch.ones(2)
        >>> mean_of_processes_(Trainer(logger=False, enable_checkpointing=False), tensor)
        >>> tensor
        tensor([1., 1.])
    """
    if trainer.world_size > 1:
        dist.all_reduce(tensor)
        tensor.div_(trainer.world_size)


def average_over_processes_(tensors: list[Tensor]) -> None:
    """Averages tensors over all processes, in place and in one call for each type and device."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for alike in kinds.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        parts = flat.split([tensor.numel() for tensor in alike])
        torch._foreach_copy_(alike, [part.view_as(t) for part, t in zip(parts, alike, strict=True)])
