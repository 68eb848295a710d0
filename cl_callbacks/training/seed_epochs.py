"""Seeds each epoch by its number, so that a resumed training draws the same random numbers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import RandomSampler

from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import NON_NEGATIVE
from cl_callbacks.guards.once import first_time
from cl_callbacks.training.generators import seed_torch


class SeedEpochs(Callback):
    """Seeds torch, numpy and Python at the first batch of each epoch.

    Lightning saves no random number generators in its checkpoints, so that a resumed network with dropout
    draws other numbers. With this callback a training that is resumed from the end of an epoch draws the same
    as one that was never stopped, on as many processes and the same kind of device. It has no state, so it
    does not matter how a checkpoint was written.

    Processes that train on different data draw different numbers, such as masks of dropout; those that share
    their data under tensor parallelism draw the same. Between epochs, when samplers draw the order of the
    data, all processes have the same numbers again.

    The order of the data is not affected: loaders have begun by then. Give
    :class:`~cl_callbacks.TaskSequence` a ``shuffle_seed``, or your own loader a sampler with ``set_epoch``,
    such as torch's ``DistributedSampler``.

    Args:
        seed: from 0.

    Raises:
        ValueError: a seed that is not an integer from 0.

    Example:
        >>> SeedEpochs(seed=3).seed
        3
    """

    @checked(seed=NON_NEGATIVE)
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds the generators after the loaders have drawn their numbers, which differ after a resume."""
        if batch_idx == 0:
            _warn_of_shuffling(self, trainer.train_dataloader)
            share: Any = trainer.distributed_sampler_kwargs or {"rank": 0}  # of the data, of this process
            self._seed(trainer, pl_module, trainer.current_epoch, share["rank"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives all processes the same numbers, which a sampler that knows of no process relies on."""
        if trainer.world_size > 1:
            self._seed(trainer, pl_module, trainer.current_epoch, 0, 1)

    def _seed(self, trainer: Trainer, pl_module: LightningModule, *numbers: int) -> None:
        number = int(np.random.SeedSequence([self.seed, *numbers]).generate_state(1)[0])
        seed_torch(trainer, pl_module, number)
        np.random.seed(number)
        random.seed(number)


def _warn_of_shuffling(callback: SeedEpochs, loader: Any) -> None:
    """Warns once of an order of the data that a resumed training does not repeat."""
    shuffles = isinstance(getattr(loader, "sampler", None), RandomSampler)
    if shuffles and first_time(callback, "order"):
        rank_zero_warn(
            "SeedEpochs: the loader shuffles by itself, and not by the epoch's number, so a resumed training "
            "sees its samples in another order. Give TaskSequence a shuffle_seed, or your own loader a "
            "sampler with `set_epoch`, such as DistributedSampler(data, num_replicas=1, rank=0)."
        )
