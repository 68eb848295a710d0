"""Seeds each epoch by its number, so that a resumed training draws the same random numbers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cl_callbacks.guards.arguments import integer


class SeedEpochs(Callback):
    """Seeds torch, numpy and Python at the first batch of each epoch.

    Lightning saves no random number generators in its checkpoints, so that a resumed network with dropout
    draws other numbers. With this callback a training that is resumed from the end of an epoch draws the same
    as one that was never stopped. It has no state, so it does not matter how a checkpoint was written.

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

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = integer("seed", seed, least=0)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds the generators after the loaders have drawn their numbers, which differ after a resume."""
        if batch_idx == 0:
            sequence = np.random.SeedSequence([self.seed, trainer.current_epoch])
            number = int(sequence.generate_state(1)[0])
            torch.manual_seed(number)
            np.random.seed(number)
            random.seed(number)
