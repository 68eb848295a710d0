"""The base class of rules that add the gradient of another loss on each of the task's batches."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import NON_NEGATIVE
from cl_callbacks.rules.rehearsal.extra_loss import LossPull
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.tensors.random_numbers import mixed_seed
from cl_callbacks.training.lightning_private import is_stepping_batch
from cl_callbacks.training.quiet_step import quiet_step


class BatchGradients(LossPull):
    r"""Base of the rules that override :meth:`batch_loss`, a loss on the task's own batches.

    Its gradient is computed before ``training_step`` sees the batch, at the same weights and with the memory
    that activations will take still free, and counts if the batch has a loss. Those of the batches that are
    accumulated for a step are summed, each divided by their number, as Lightning does it with the task's. In
    all else it is a :class:`~cl_callbacks.rules.rehearsal.extra_loss.LossPull`.

    Args:
        strength: factor of the loss, at least 0; 0 leaves training as it is, bit for bit.
        seed: of random numbers.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`.
    """

    dial = "strength"

    @checked(strength=NON_NEGATIVE)
    def __init__(self, strength: float = 1.0, *, seed: int = 0, **options: Unpack[RuleOptions]) -> None:
        super().__init__(weight=strength, seed=seed, **options)
        self._batch: tuple[dict[Tensor, Tensor], Tensor] | None = None  # of the present one, until it counts
        self._summed: dict[Tensor, Tensor] = {}
        self._summed_loss: Tensor | None = None
        self._batches = 0  # for the next step

    @property
    def strength(self) -> float:
        """Factor of the loss."""
        return self.weight

    @strength.setter
    def strength(self, value: float) -> None:
        self.weight = value

    def batch_loss(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Tensor | None:
        """The loss on a batch, which all processes have or none has; called without a trace in training."""
        raise NotImplementedError

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Computes the gradient for the batch."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._batch = None
        if not self.is_due:
            return
        if self._step is not None and self._step.is_new:  # parameters may have been unfrozen
            self._place(pl_module, growing=True)
        parameters = [p for p in self.synapses.view.sources if p.requires_grad]
        seed = mixed_seed(self.seed, self.steps, trainer.global_rank + trainer.world_size * self._batches)
        with quiet_step(trainer, pl_module, seed), self.apart(pl_module):
            loss = self.batch_loss(trainer, pl_module, batch)
            if loss is not None:
                loss = loss / trainer.accumulate_grad_batches
                self._batch = self.scaled_gradient(loss, parameters, trainer), loss.detach().float()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Counts the gradient, once, since the batch has a loss."""
        super().on_before_backward(trainer, pl_module, loss)
        if self._batch is None:
            return
        (found, own), self._batch = self._batch, None
        known = [p for p in found if p in self._summed]
        if known:
            torch._foreach_add_([self._summed[p] for p in known], [found[p] for p in known])
        self._summed = found | self._summed
        self._summed_loss = own if self._summed_loss is None else self._summed_loss + own
        self._batches += 1

    def begin_step(self) -> None:
        """Adds the gradient of all batches of the step."""
        if self._summed_loss is not None and self._fitting is not None:
            self.add_gradient(self._summed, self._summed_loss)
            self._summed, self._summed_loss = {}, None

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Forgets the gradient when a step was made or skipped."""
        super().on_train_batch_end(trainer, *args)
        if is_stepping_batch(trainer):
            self._summed, self._summed_loss, self._batches = {}, None, 0

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of what was summed."""
        super().teardown(trainer, pl_module, stage)
        self._batch, self._summed, self._summed_loss, self._batches = None, {}, None, 0
