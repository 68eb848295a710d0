"""Seeds and restores the random number generators of a training."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Generator

from cl_callbacks.compiled.kernels import COMPILING as _LOCK
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
    calls ``torch.manual_seed`` within seeds them all. The host does not wait for a device. They belong to the
    process: where such contexts of several threads overlap, the last one restores what the first has found.
    """
    kept = _Kept(_all_generators(trainer, pl_module))
    try:
        yield
    finally:
        kept.restore()


def initial_seed() -> int:
    """Seed that torch's generator of the CPU was given, but not by :func:`isolated_rng` of another thread."""
    with _LOCK:
        states = _found_by_others()
        found = Generator().set_state(states[_CPU]) if states else torch.default_generator
        return found.initial_seed()


_Access = tuple[Callable[[], Any], Callable[[Any], None]]
"""Functions that get and set the state of a generator."""


class _Kept:
    """The states of generators, which those that overlap in several threads have in common.

    Args:
        generators: by name.
    """

    def __init__(self, generators: Mapping[str, _Access]) -> None:
        self.thread, self._generators = threading.get_ident(), generators
        with _LOCK:
            self.within = any(each.thread == self.thread for each in _KEPT)
            found = {} if self.within else _found_by_others()
            self.states = {n: found[n] if n in found else get() for n, (get, _) in generators.items()}
            _KEPT.add(self)

    def restore(self) -> None:
        """Restores the states, but for those that another thread will restore."""
        with _LOCK:
            _KEPT.discard(self)
            left = {} if self.within else _found_by_others()
            for name, (_, set_state) in self._generators.items():
                if name not in left:
                    set_state(self.states[name])


_KEPT: WeakSet[_Kept] = WeakSet()  # weak, since Ctrl-C may come just before one is restored
_CPU = "cpu"


def _found_by_others() -> dict[str, Any]:
    """States before the contexts of other threads; none within a context of this thread."""
    kept = list(_KEPT)
    if any(each.thread == threading.get_ident() for each in kept):
        return {}
    return {name: state for each in kept if not each.within for name, state in each.states.items()}


def _all_generators(trainer: Trainer, pl_module: LightningModule) -> dict[str, _Access]:
    found: dict[str, _Access] = {
        "python": (random.getstate, random.setstate),
        "numpy": (np.random.get_state, np.random.set_state),
        _CPU: (torch.get_rng_state, torch.set_rng_state),
    }
    for kind in {device.type for device in _devices(trainer, pl_module)}:
        module = torch.get_device_module(kind)
        for device in (torch.device(kind, index) for index in range(module.device_count())):
            found[str(device)] = _of_device(module, device)
    return found


def _of_device(module: Any, device: torch.device) -> _Access:
    return partial(module.get_rng_state, device), lambda state: module.set_rng_state(state, device)


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
