"""An extra pass over the training data, from inside a hook, that training does not notice."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from cl_callbacks.gradients.per_sample import Cotangents, Forward, PerSampleGradients
from cl_callbacks.gradients.sample_gradients import Magnitude
from cl_callbacks.gradients.sharded_gradients import ShardedGradients, seen_by_all, share_buffers
from cl_callbacks.guards.uninterrupted import uninterrupted
from cl_callbacks.tensors.batches import count_samples, take_samples
from cl_callbacks.tensors.shards import group_of, total
from cl_callbacks.training.progress import progress
from cl_callbacks.training.quiet import quiet


def task_batches(trainer: Trainer, samples: int | None, seed: int = 0) -> Iterator[Any]:
    """Batches of the current task's training data, on the device: ``samples`` in all, over all ranks.

    The data come from the boundary callback if it keeps recent batches (a stream tells tasks apart only
    as it passes), else from a fresh loader over the dataset of ``trainer.train_dataloader``, so that
    the loader in use is not disturbed: a random choice of samples without replacement, the same for
    the same seed, each on one rank.

    Args:
        trainer: a trainer that is fitting.
        samples: how many to use; all for ``None``.
        seed: of the choice.
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
            batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
            yield trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        else:  # has been through the transfer hooks once
            yield move_data_to_device(batch, trainer.strategy.root_device)


def _recent_batches(trainer: Trainer) -> Iterable[Any] | None:
    kept = (getattr(callback, "recent_batches", None) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    return next((recent for recent in kept if recent is not None), None)


def _fresh_batches(trainer: Trainer, samples: int | None, seed: int) -> Iterable[Any]:
    in_use = trainer.fit_loop._combined_loader
    assert in_use is not None
    # The user's loaders may be nested in any collection: keep its shape and mode, replace the leaves.
    fresh = CombinedLoader(in_use.iterables, in_use._mode)
    fresh.flattened = [_fresh(loader, trainer, samples, seed) for loader in fresh.flattened]
    return (batch for batch, _, _ in iter(fresh))


def _fresh(loader: Any, trainer: Trainer, samples: int | None, seed: int) -> Iterable[Any]:
    """A loader of its own over the same data, without worker processes."""
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
    """Indices of a random choice from what the loader would visit on this rank."""
    sampler: Any = loader.sampler
    generator = torch.Generator().manual_seed(seed)
    custom = loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler
    if not custom and type(sampler) in (RandomSampler, DistributedSampler):
        order = torch.randperm(len(loader.dataset), generator=generator)  # type: ignore[arg-type]
        return order[:samples][trainer.global_rank :: trainer.world_size].tolist()
    # A sampler of the user's says what the task is; its own generator must not move.
    own = getattr(sampler, "generator", None)
    state = own.get_state() if own is not None else None
    # Only as far as the epoch goes: it may be limited, and its sampler without end.
    apart = _apart(sampler if loader.batch_sampler is None else loader.batch_sampler)
    source = ([i] for i in apart) if loader.batch_sampler is None else apart
    batches = islice(source, _batches_in_epoch(trainer))
    visited = [i for batch in batches for i in batch]
    if own is not None:
        own.set_state(state)
    order = torch.randperm(len(visited), generator=generator)
    return [visited[i] for i in order[:samples]]


def _count(trainer: Trainer, samples: int | None) -> int | None:
    """How many samples all ranks together are going to use, where it can be told beforehand."""
    in_use = trainer.fit_loop._combined_loader
    loaders = [] if in_use is None or _recent_batches(trainer) is not None else in_use.flattened
    if len(loaders) == 1 and isinstance(loaders[0], DataLoader):
        loader = loaders[0]
        if type(loader.sampler) in (RandomSampler, DistributedSampler, SequentialSampler):
            dataset: Any = loader.dataset
            return len(dataset) if samples is None else min(samples, len(dataset))
    return samples


def _apart(used: Any) -> Any:
    """A copy to read in the place of what is in use, which may keep its place for a resume."""
    apart = copy.copy(used)
    if isinstance(apart, BatchSampler):
        apart.sampler = copy.copy(apart.sampler)
    return apart


def _batches_in_epoch(trainer: Trainer) -> int | None:
    limit = trainer.num_training_batches
    return None if math.isinf(limit) else int(limit)


def checked_samples(samples: int | None) -> int | None:
    """The number of samples that a rule measures on, if it can be one."""
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, or None for all; got {samples}")
    return samples


def mean_over_task(
    trainer: Trainer,
    pl_module: LightningModule,
    measure: Callable[[Any], tuple[list[Tensor], int]],
    zeros: list[Tensor],
    *,
    samples: int | None,
    what: str,
    seed: int = 0,
    shards: dist.ProcessGroup | None = None,
) -> list[Tensor] | None:
    """Mean over samples of the current task of whatever ``measure`` sums over a batch, in a quiet pass.

    Averaged over all ranks. What is not finite is left out and said.

    Args:
        trainer: a trainer that is fitting.
        pl_module: its module, not wrapped.
        measure: from a batch to sums over its samples, and how many samples went into them.
        zeros: what the sums are for no sample.
        samples: how many samples of the task to use; all for ``None``.
        what: is measured, for the terminal.
        seed: of the choice of samples and of random labels.
        shards: the processes that each sum over all samples, on a shard of the parameters of their own;
            default: each sums over its share of the samples, on all parameters.

    Returns:
        The means; ``None`` if no sample is finite.
    """
    totals, used, seen = zeros, 0, 0
    count = _count(trainer, samples)
    if count is not None and shards is None:
        count = len(range(trainer.global_rank, count, trainer.world_size))
    with quiet(trainer, pl_module, seed), progress(trainer, what, count) as advance:
        if shards is not None:
            share_buffers(pl_module)
        batches = task_batches(trainer, samples, seed)
        for batch in batches if shards is None else seen_by_all(batches, trainer, seed):
            with uninterrupted():  # or hooks might stay on the module
                sums, n = measure(batch)
            seen += count_samples(batch)
            advance(count_samples(batch))
            # The largest magnitude is finite where all are; nothing of the model's size is made for it.
            largest = get_total_norm([s for s in sums if s.numel()], torch.inf).to(pl_module.device)
            if not total((~largest.isfinite()).long(), shards):
                totals = [so_far.to(s.dtype).add_(s) for so_far, s in zip(totals, sums, strict=True)]
                used += n
    if shards is None:
        counts = torch.tensor([used, seen], device=pl_module.device)
        used, seen = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        totals = [trainer.strategy.reduce(summed, reduce_op="sum") for summed in totals]
    if used < seen:
        rank_zero_warn(
            f"{seen - used} of {seen} samples have outputs or gradients that are not finite and were left "
            f"out of the importance."
        )
    return None if used == 0 else [summed / used for summed in totals]


def mean_of_gradients(
    trainer: Trainer,
    pl_module: LightningModule,
    parameters: Sequence[Tensor],
    forward: Forward,
    cotangents: Cotangents,
    magnitude: Magnitude = Tensor.square_,
    *,
    samples: int | None,
    what: str,
    seed: int = 0,
) -> list[Tensor] | None:
    r"""Mean size of per-sample gradients over the current task, :math:`\frac1N\sum_n (J_n^\top v_n)^2`.

    Args:
        trainer: a trainer that is fitting.
        pl_module: its module, not wrapped.
        parameters: of ``pl_module``; of sharded ones the means are on this process's shards.
        forward: ``batch -> (outputs, labels)``.
        cotangents: ``(outputs, labels) -> vectors``, each of the shape of the outputs.
        magnitude: ``torch.Tensor.square_`` or ``torch.Tensor.abs_``.
        samples: how many samples of the task to use; all for ``None``.
        what: is measured, for the terminal.
        seed: of the choice of samples and of random labels.

    Returns:
        One tensor for each parameter; ``None`` if no sample is finite.
    """
    names = {id(p): name for name, p in pl_module.named_parameters()}
    named = {names[id(p)]: p for p in parameters}
    shards = group_of(parameters)
    kind = PerSampleGradients if shards is None else ShardedGradients
    per_sample = kind(pl_module, named, forward, magnitude=magnitude)
    of_batch = per_sample.zeros()  # apart, until it is known to be finite; the same tensors for every batch

    def measure(batch: Any) -> tuple[list[Tensor], int]:
        torch._foreach_zero_(of_batch)
        return per_sample.sums(batch, cotangents, of_batch)

    return mean_over_task(
        trainer,
        pl_module,
        measure,
        per_sample.zeros(),
        samples=samples,
        what=what,
        seed=seed,
        shards=shards,
    )
