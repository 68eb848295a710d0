"""Extra passes over the training data from inside a hook, without side effects on training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.utils import get_total_norm

from cl_callbacks.gradients.per_sample import Cotangents, Forward, PerSampleGradients
from cl_callbacks.gradients.sample_gradients import Magnitude
from cl_callbacks.gradients.sharded_gradients import ShardedGradients
from cl_callbacks.guards.uninterrupted import uninterrupted
from cl_callbacks.tensors.shards import group_of, total
from cl_callbacks.training.progress import progress
from cl_callbacks.training.quiet import quiet
from cl_callbacks.training.shared_batches import seen_by_all, share_buffers
from cl_callbacks.training.task_batches import sample_count, task_batches


def mean_over_task(
    trainer: Trainer,
    pl_module: LightningModule,
    measure: Callable[[Any, int | None], tuple[list[Tensor], int, int]],
    zeros: list[Tensor],
    *,
    samples: int | None,
    what: str,
    seed: int = 0,
    shards: dist.ProcessGroup | None = None,
    counted: Callable[[int], None] | None = None,
) -> list[Tensor] | None:
    """Mean over samples of the current task of the sums that ``measure`` returns for batches.

    The mean is over all ranks. Samples and batches that are not finite are left out, with a warning.

    Args:
        trainer: a trainer that is fitting.
        pl_module: its module, not wrapped.
        measure: function from a batch and the number of its samples to measure, ``None`` for all, to sums
            over its samples, the number of samples in them, and that with those that are not finite.
        zeros: the sums over no sample.
        samples: number of samples of the task to use; ``None`` for all.
        what: description of what is measured, for the progress bar.
        seed: of the choice of samples and of random labels.
        shards: group of processes that each sum over all samples, on their own shards of the parameters;
            default: each sums over its share of the samples, on all parameters.
        counted: called with the number of samples that were measured on, over all processes.

    Returns:
        The means; ``None`` if no sample is finite.
    """
    totals, used, seen = zeros, 0, 0
    most, count = samples, sample_count(trainer, samples)
    if shards is None:  # each process measures its share
        most, count = _share(trainer, most), _share(trainer, count)
    with quiet(trainer, pl_module, seed), progress(trainer, what, count) as advance:
        if shards is not None:
            share_buffers(pl_module)
        batches = iter(()) if most == 0 else task_batches(trainer, samples, seed)
        for batch in batches if shards is None else seen_by_all(batches, trainer, seed):
            with uninterrupted():  # or hooks might stay on the module
                sums, n, rows = measure(batch, None if most is None else most - seen)
            seen += rows
            advance(rows)
            # The largest magnitude is finite if all are; it needs no temporary tensors of the model's size.
            largest = get_total_norm([s for s in sums if s.numel()], torch.inf).to(pl_module.device)
            if not total((~largest.isfinite()).long(), shards):
                totals = [so_far.to(s.dtype).add_(s) for so_far, s in zip(totals, sums, strict=True)]
                used += n
            if most is not None and seen >= most:
                break
    if shards is None:
        counts = torch.tensor([used, seen], device=pl_module.device)
        used, seen = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        totals = [trainer.strategy.reduce(summed, reduce_op="sum") for summed in totals]
    if used < seen:
        rank_zero_warn(
            f"{seen - used} of {seen} samples have outputs or gradients that are not finite and were left "
            f"out of the importance."
        )
    if counted is not None:
        counted(used)
    return None if used == 0 else [summed / used for summed in totals]


def _share(trainer: Trainer, samples: int | None) -> int | None:
    """Number of samples of this process, of a number over all processes."""
    return None if samples is None else len(range(trainer.global_rank, samples, trainer.world_size))


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
    counted: Callable[[int], None] | None = None,
) -> list[Tensor] | None:
    r"""Mean size of per-sample gradients over the current task, :math:`\frac1N\sum_n (J_n^\top v_n)^2`.

    For parameters of ``pl_module``; if they are sharded, the means are on this process's shards. Trainer,
    samples, seed and ``counted`` are as in :func:`mean_over_task`, and what to differentiate, ``forward``,
    ``cotangents`` and ``magnitude``, as in :class:`~cl_callbacks.gradients.per_sample.PerSampleGradients`.

    Returns:
        One tensor for each parameter; ``None`` if no sample is finite.
    """
    names = {id(p): name for name, p in pl_module.named_parameters()}
    named = {names[id(p)]: p for p in parameters}
    shards = group_of(parameters)
    kind = PerSampleGradients if shards is None else ShardedGradients
    per_sample = kind(pl_module, named, forward, magnitude=magnitude)
    of_batch = per_sample.zeros()  # kept separate until checked to be finite; reused for every batch

    def measure(batch: Any, most: int | None) -> tuple[list[Tensor], int, int]:
        torch._foreach_zero_(of_batch)
        return *per_sample.sums(batch, cotangents, of_batch, most), per_sample.rows

    return mean_over_task(
        trainer,
        pl_module,
        measure,
        per_sample.zeros(),
        samples=samples,
        what=what,
        seed=seed,
        shards=shards,
        counted=counted,
    )
