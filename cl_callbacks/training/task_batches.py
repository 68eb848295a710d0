"""Reads the current task's training data again, without changing the loaders of the training."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice
from typing import Any

import torch
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

from cl_callbacks.tensors.containers import moved
from cl_callbacks.tensors.random_numbers import mixed_seed
from cl_callbacks.training.generators import generators_kept
from cl_callbacks.training.lightning_private import before_batch_transfer, loaders_in_use, loaders_like


def task_batches(trainer: Trainer, samples: int | None, seed: int = 0) -> Iterator[Any]:
    """Yields batches of the current task's training data, on the device: at least ``samples`` over all ranks.

    The data come from the boundary callback if it keeps recent batches (a stream without task labels
    cannot be read again), else from a new loader over the dataset of ``trainer.train_dataloader``, so that
    the loader in use is not disturbed: a random choice of samples without replacement, the same for
    the same seed, each on one rank. Batches that are made by the data or by a batch sampler stay whole, so
    that there may be more samples than wanted.

    Args:
        trainer: a trainer that is fitting.
        samples: number of samples to use; ``None`` for all.
        seed: of the random choice.

    Raises:
        TypeError: data that can be read only once.
    """
    recent = _recent_batches(trainer)
    for batch in _fresh_batches(trainer, samples, seed) if recent is None else recent:
        if recent is None:
            batch = trainer.precision_plugin.convert_input(batch)
            batch = before_batch_transfer(trainer.lightning_module, batch)
            yield trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        else:  # has already passed the transfer hooks
            yield moved(batch, trainer.strategy.root_device)


def refuse_data_read_once(trainer: Trainer) -> None:
    """Raises a ``TypeError`` for training data that :func:`task_batches` could not read again."""
    in_use = loaders_in_use(trainer)
    for loader in [] if in_use is None or _recent_batches(trainer) is not None else in_use.flattened:
        if not isinstance(loader, DataLoader) and isinstance(loader, Iterator) and iter(loader) is loader:
            raise TypeError(
                f"The training data is an iterator ({type(loader).__name__}) that can be read only once, "
                f"so its importance cannot be measured: pass a DataLoader or another re-iterable object."
            )


def readers_of(trainer: Trainer) -> list[Any]:
    """Callbacks and modules that read the task's data again when it ends, or that may.

    The package's own say so by ``reads_task_data``; others that hear of the end of a task may, unless they
    have ``reads_task_data = False``.
    """
    listeners = [*trainer.callbacks, trainer.lightning_module, trainer.datamodule]  # type: ignore[attr-defined]
    return [
        each
        for each in listeners
        if getattr(each, "reads_task_data", callable(getattr(each, "on_task_end", None)))
    ]


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
        refuse_data_read_once(trainer)
        return _apart(loader)

    def load(dataset: Any, **batching: Any) -> DataLoader:
        return DataLoader(dataset, collate_fn=loader.collate_fn, pin_memory=loader.pin_memory, **batching)

    if isinstance(loader.dataset, IterableDataset):
        return load(loader.dataset, batch_size=loader.batch_size, drop_last=loader.drop_last)
    if type(loader.batch_sampler) not in (BatchSampler, type(None)):
        # Only as this sampler makes them are they known to be batches: of one length, or of so many words.
        visited = _visited(loader.batch_sampler, trainer, seed)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(visited), generator=generator).tolist()
        return load(loader.dataset, batch_sampler=_until([visited[i] for i in order], samples))
    chosen, most = _choose(loader, trainer, samples, seed)
    if loader.batch_sampler is None:  # the dataset gives whole batches, one for each index
        return load(Subset(loader.dataset, chosen[:most]), batch_size=None)
    sampler: Any = loader.batch_sampler
    batches = _in_batches(chosen, most, sampler.batch_size, sampler.drop_last)
    return load(loader.dataset, batch_sampler=batches)


def _choose(loader: DataLoader, trainer: Trainer, samples: int | None, seed: int) -> tuple[list[int], int]:
    """Random order of the indices that the loader would visit on this rank, and how many of them to use."""
    sampler: Any = loader.sampler
    generator = torch.Generator().manual_seed(seed)
    if type(sampler) in (RandomSampler, DistributedSampler):
        own = slice(trainer.global_rank, None, trainer.world_size)
        order = torch.randperm(len(loader.dataset), generator=generator).tolist()  # type: ignore[arg-type]
        return order[own], len(order[:samples][own])
    if loader.batch_sampler is None:
        visited = _visited(sampler, trainer, seed)
    else:
        visited = [i for batch in _visited(loader.batch_sampler, trainer, seed) for i in batch]
    order = torch.randperm(len(visited), generator=generator).tolist()
    return [visited[i] for i in order], len(order[:samples])


def _visited(source: Any, trainer: Trainer, seed: int) -> list[Any]:
    """What a sampler that defines the samples of the task gives in an epoch: indices, or batches of them.

    Its generator does not advance. The epoch may be limited, and the sampler infinite.
    """
    with generators_kept([source, torch.default_generator]):
        # The same in all processes, or one sampler that they divide would give some samples to two of them.
        torch.default_generator.manual_seed(mixed_seed(seed, 1))  # and another than of the choice
        return list(islice(_apart(source), _batches_in_epoch(trainer)))


def _until(batches: list[list[int]], samples: int | None) -> list[list[int]]:
    """The first batches, as many as hold at least ``samples``."""
    before = accumulate(map(len, batches), initial=0)
    return [batch for batch, n in zip(batches, before, strict=False) if samples is None or n < samples]


def _in_batches(order: list[int], most: int, size: int, whole: bool) -> list[list[int]]:
    """Batches of the first ``most`` of some indices, of equal sizes: none has a single sample left over.

    Where the training drops what does not fill a batch, all are of the full size, with further samples.
    """
    if whole and len(order) >= size:
        number = min(-(-most // size), len(order) // size)
        return [order[size * i : size * (i + 1)] for i in range(number)]
    number = -(-most // size)
    # In their order, so that labels that are drawn do not depend on how they are divided.
    return [order[most * i // number : most * (i + 1) // number] for i in range(number)]


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
        apart.sampler = _apart(apart.sampler)
    if isinstance(apart, DistributedSampler):  # Lightning's keep the order of the epoch there
        apart.dataset = copy.copy(apart.dataset)
    return apart


def _batches_in_epoch(trainer: Trainer) -> int | None:
    limit = trainer.num_training_batches
    return None if math.isinf(limit) else int(limit)
