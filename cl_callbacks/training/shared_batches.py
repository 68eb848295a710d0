"""Gives all processes the same batches and buffers, for measurements on sharded parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, islice
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import nn

from cl_callbacks.tensors.containers import moved
from cl_callbacks.training.generators import seed_torch


def share_buffers(module: nn.Module) -> None:
    """Gives all processes the first one's buffers (BatchNorm's statistics, …), which differ under FSDP2."""
    for buffer in module.buffers():
        dist.broadcast(buffer, src=0)


def seen_by_all(batches: Iterable[Any], trainer: Trainer, seed: int) -> Iterator[Any]:
    """Yields the batches of all processes on every process, each with the same random seed.

    Some processes may have fewer batches of their own, or none.
    """
    own, numbers = iter(batches), count()
    while True:
        shown: list[list[Any]] = [[] for _ in range(trainer.world_size)]
        dist.all_gather_object(shown, [moved(batch, torch.device("cpu")) for batch in islice(own, 1)])
        if not any(shown):
            return
        for (batch,) in filter(None, shown):
            seed_torch(trainer, trainer.lightning_module, 1000003 * seed + next(numbers))
            yield moved(batch, trainer.strategy.root_device)
