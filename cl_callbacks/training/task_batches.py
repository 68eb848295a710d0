"""Reads the current task's training data again, without changing the loaders of the training."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Trainer
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from cl_callbacks.tensors.batches import count_samples, take_samples
from cl_callbacks.training.lightning_private import before_batch_transfer, loaders_in_use, loaders_like


def task_batches(trainer: Trainer, samples: int | None, seed: int = 0) -> Iterator[Any]:
    """Yields batches of the current task's training data, on the device: ``samples`` over all ranks.

    The data come from the boundary callback if it keeps recent batches (a stream without task labels
    cannot be read again), else from a new loader over the dataset of ``trainer.train_dataloader``, so that
    the loader in use is not disturbed: a random choice of samples without replacement, the same for
    the same seed, each on one rank.

    Args:
        trainer: a trainer that is fitting.
        samples: number of samples to use; ``None`` for all.
        seed: of the random choice.
    """
    remaining = None if samples is None else len(range(trainer.global_rank, samples, trainer.world_size))
    recent = _recent_batches(trainer)
    for batch in _fresh_batches(trainer, samples, seed) if recent is None else recent:
        if remaining is not None:
            if remaining <= 0:
                return
            batch = take_samples(batch, slice(0, remaining))
            remaining -= count_samples(batch)
        if recent is None:
            batch = trainer.precision_plugin.convert_input(batch)
            batch = before_batch_transfer(trainer.lightning_module, batch)
            yield trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        else:  # has already passed the transfer hooks
            yield move_data_to_device(batch, trainer.strategy.root_device)


def _recent_batches(trainer: Trainer) -> Iterable[Any] | None:
    kept = (getattr(callback, "recent_batches", None) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    return next((recent for recent in kept if recent is not None), None)


def _fresh_batches(trainer: Trainer, samples: int | None, seed: int) -> Iterable[Any]:
    in_use = loaders_in_use(trainer)
    assert in_use is not None
    # The user's loaders may be nested in any collection: keep structure and mode, replace the leaves.
    fresh = loaders_like(in_use)
    fresh.flattened = [_fresh(loader, trainer, samples, seed) for loader in fresh.flattened]
    return (batch for batch, _, _ in iter(fresh))


def _fresh(loader: Any, trainer: Trainer, samples: int | None, seed: int) -> Iterable[Any]:
    """New loader over the same data, without worker processes."""
    if not isinstance(loader, DataLoader):
        if isinstance(loader, Iterator) and iter(loader) is loader:
            raise TypeError(
                f"The training data is an iterator ({type(loader).__name__}) that can be read only once, "
                f"so its importance cannot be measured: pass a DataLoader or another re-iterable object."
            )
        return _apart(loader)

    def load(dataset: Any, batch_size: int | None) -> DataLoader:
        return DataLoader(dataset, batch_size, collate_fn=loader.collate_fn, pin_memory=loader.pin_memory)

    if isinstance(loader.dataset, IterableDataset):
        return load(loader.dataset, loader.batch_size)
    chosen = Subset(loader.dataset, _choose(loader, trainer, samples, seed))
    if loader.batch_sampler is None:  # the dataset gives whole batches, one for each index
        return load(chosen, None)
    return load(chosen, getattr(loader.batch_sampler, "batch_size", None) or loader.batch_size or 32)


def _choose(loader: DataLoader, trainer: Trainer, samples: int | None, seed: int) -> list[int]:
    """Indices of a random choice from the samples that the loader would visit on this rank."""
    sampler: Any = loader.sampler
    generator = torch.Generator().manual_seed(seed)
    custom = loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler
    if not custom and type(sampler) in (RandomSampler, DistributedSampler):
        order = torch.randperm(len(loader.dataset), generator=generator)  # type: ignore[arg-type]
        return order[:samples][trainer.global_rank :: trainer.world_size].tolist()
    # A custom sampler defines the samples of the task; its own generator must not advance.
    own = getattr(sampler, "generator", None)
    state = own.get_state() if own is not None else None
    # Only as many batches as the epoch has: it may be limited, and its sampler infinite.
    apart = _apart(sampler if loader.batch_sampler is None else loader.batch_sampler)
    source = ([i] for i in apart) if loader.batch_sampler is None else apart
    batches = islice(source, _batches_in_epoch(trainer))
    visited = [i for batch in batches for i in batch]
    if own is not None:
        own.set_state(state)
    order = torch.randperm(len(visited), generator=generator)
    return [visited[i] for i in order[:samples]]


def sample_count(trainer: Trainer, samples: int | None) -> int | None:
    """Number of samples that all ranks together will use, or an upper bound; ``None`` if unknown."""
    in_use = loaders_in_use(trainer)
    loaders = [] if in_use is None or _recent_batches(trainer) is not None else in_use.flattened
    if len(loaders) == 1 and isinstance(loaders[0], DataLoader):
        loader = loaders[0]
        if type(loader.sampler) in (RandomSampler, DistributedSampler, SequentialSampler):
            dataset: Any = loader.dataset
            return len(dataset) if samples is None else min(samples, len(dataset))
    return samples


def _apart(used: Any) -> Any:
    """Copies an object for reading, since the one in use may save its position for a resume."""
    apart = copy.copy(used)
    if isinstance(apart, BatchSampler):
        apart.sampler = copy.copy(apart.sampler)
    return apart


def _batches_in_epoch(trainer: Trainer) -> int | None:
    limit = trainer.num_training_batches
    return None if math.isinf(limit) else int(limit)
