"""Seeds and restores the random number generators of a training."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Generator

from cl_callbacks.training.lightning_private import undivided


def seed_torch(trainer: Trainer, pl_module: LightningModule, number: int) -> None:
    """Seeds torch's generators of the CPU and of the devices that a training uses.

    ``torch.manual_seed`` seeds those of all devices of the machine, whoever uses them.
    """
    torch.default_generator.manual_seed(number)
    for device in _devices(trainer, pl_module):
        state = Generator(device).manual_seed(number).get_state()
        torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def isolated_rng(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Restores the generators of torch, NumPy and Python afterwards, also after an exception.

    Torch's are those of the CPU and of all devices of a kind that the training uses, since a module that
    calls ``torch.manual_seed`` within seeds them all. The host does not wait for a device.
    """
    python, from_numpy, on_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    kinds = {device.type: torch.get_device_module(device) for device in _devices(trainer, pl_module)}
    devices = [(m, torch.device(kind, i)) for kind, m in kinds.items() for i in range(m.device_count())]
    states = [module.get_rng_state(device) for module, device in devices]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(from_numpy)
        torch.set_rng_state(on_cpu)
        for (module, device), state in zip(devices, states, strict=True):
            module.set_rng_state(state, device)


def _devices(trainer: Trainer, pl_module: LightningModule) -> set[torch.device]:
    """The devices of a training but for the CPU: that of the batches, and those of the weights."""
    used = {p.device for p in pl_module.parameters()} | {trainer.strategy.root_device}
    return {device for device in used if device.type not in ("cpu", "meta")}


@contextmanager
def generators_kept(owners: Iterable[Any]) -> Iterator[None]:
    """Restores generators, and those of loaders and samplers, which the training's loaders may share."""
    drawn = {g: g.get_state() for owner in owners for g in _generators(owner)}
    try:
        yield
    finally:
        for generator, state in drawn.items():
            generator.set_state(state)


def _generators(owner: Any) -> list[Generator]:
    if isinstance(owner, Generator):
        return [owner]
    parts = [getattr(owner, name, None) for name in ("generator", "sampler", "batch_sampler")]
    return [g for part in (*parts, undivided(owner)) if part is not None for g in _generators(part)]
