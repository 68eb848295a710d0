"""The base class of rules that add the gradient of another loss to that of the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, NON_NEGATIVE, Bounds
from cl_callbacks.guards.sound_state import COUNT
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors.blocks import rows_of
from cl_callbacks.tensors.random_numbers import mixed_seed
from cl_callbacks.tensors.shards import gradients_apart, group_of, held
from cl_callbacks.training.loss_scale import unscale_and_check
from cl_callbacks.training.process_sums import average_over_processes_
from cl_callbacks.training.quiet_step import quiet_step


class LossPull(SynapticCallback):
    r"""Base of the rules that override :meth:`extra_loss`, whose gradient they add to the task's.

    .. math:: g \leftarrow g + w\,\nabla_\theta L_{\text{extra}}(\theta)

    It is computed once for each optimizer step, at the weights that the step begins with, however many
    batches are accumulated for it; in the Trainer's precision, and without a trace in the training (see
    ``training/quiet_step.py``). With several processes it is the mean over theirs.
    Other rules see the gradient of the task alone. A step that is skipped leaves nothing behind.

    Args:
        weight: :math:`w`, at least 0; 0 leaves training as it is, bit for bit.
        every_n_steps: optimizer steps from one that adds the gradient to the next.
        seed: of random numbers.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`.

    Raises:
        ValueError: an argument that cannot work, at construction.
    """

    local: ClassVar[bool] = True
    holds_weights: ClassVar[bool] = False
    saved: ClassVar[tuple[str, ...]] = ("steps",)
    state_bounds: Mapping[str, Bounds] = {**SynapticCallback.state_bounds, "steps": COUNT}
    dial = "weight"

    @checked(weight=NON_NEGATIVE, every_n_steps=AT_LEAST_ONE, seed=NON_NEGATIVE)
    def __init__(
        self, *, weight: float = 1.0, every_n_steps: int = 1, seed: int = 0, **options: Unpack[RuleOptions]
    ) -> None:
        super().__init__(**options)
        self.weight, self.every_n_steps, self.seed = weight, every_n_steps, seed
        self.steps = 0
        """Number of optimizer steps that were taken."""
        self._fitting: tuple[Trainer, LightningModule] | None = None
        self._gradients: dict[Tensor, Tensor] = {}
        self._loss: Tensor | None = None
        self._stepped = False  # in the present batch

    def extra_loss(self, trainer: Trainer, pl_module: LightningModule) -> Tensor | None:
        """The loss whose gradient is added; ``None`` if there is nothing to add.

        Called within ``training/quiet_step.py``. On every process or on none there
        has to be one.
        """
        raise NotImplementedError

    @property
    def is_due(self) -> bool:
        """Whether the next step adds the gradient."""
        return self.weight > 0 and self.steps % self.every_n_steps == 0

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are sharded over processes, which then run all forwards together."""
        return group_of(self.synapses.view.sources[:1]) is not None  # all of them are, or none

    def apart(self, pl_module: LightningModule) -> AbstractContextManager[None]:
        """Context of a forward and ``gradients_of``, after which the task's gradients are as before."""
        return gradients_apart(pl_module) if self.is_sharded else nullcontext()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the Trainer, since a step has none."""
        self._fitting = trainer, pl_module
        super().on_train_start(trainer, pl_module)

    def begin_step(self) -> None:
        """Computes the gradient of the other loss, before any rule pulls."""
        self._gradients = {}
        if self.is_due and self._fitting is not None:
            trainer, pl_module = self._fitting
            if self._step is not None and self._step.is_new:  # parameters may have been unfrozen
                self._place(pl_module, growing=True)
            parameters = [p for p in self.synapses.view.sources if p.requires_grad]
            seed = mixed_seed(self.seed, self.steps, trainer.global_rank)
            with quiet_step(trainer, pl_module, seed), self.apart(pl_module):
                loss = self.extra_loss(trainer, pl_module)
                if loss is not None:
                    self.add_gradient(self.scaled_gradient(loss, parameters, trainer), loss.detach().float())

    def scaled_gradient(
        self, loss: Tensor, parameters: list[Tensor], trainer: Trainer
    ) -> dict[Tensor, Tensor]:
        """Gradient of a loss by parameter, multiplied by the loss scale of mixed precision."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scaled = loss if scaler is None else scaler.scale(loss)
        return dict(zip(parameters, gradients_of(scaled, parameters), strict=True))

    def add_gradient(self, scaled: dict[Tensor, Tensor], loss: Tensor) -> None:
        """Lets the step add a gradient that is scaled, in its mean over processes."""
        assert self._fitting is not None
        trainer, _ = self._fitting
        found, self._loss = list(scaled.values()), loss
        if trainer.world_size > 1:
            average_over_processes_([*([] if self.is_sharded else found), loss])
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            unscale_and_check(scaler, found, group_of(self.synapses.view.sources[:1]))
        self._gradients = scaled

    def pull(self, synapses: SynapseView, gradients: list[Tensor]) -> None:
        """Adds the gradient, times the weight."""
        known = [i for i, p in enumerate(synapses.sources) if p in self._gradients]
        if known:
            own = [rows_of(self._gradients[synapses.sources[i]], synapses.rows[i]) for i in known]
            torch._foreach_add_([gradients[i] for i in known], own, alpha=self.weight)

    def end_step(self, synapses: SynapseView) -> None:
        """Counts the step."""
        self.steps += 1
        self._stepped = True

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Forgets the gradient."""
        super().on_train_batch_end(trainer, *args)
        self._gradients, self._stepped = {}, False

    def penalty(self, synapses: SynapseView) -> Tensor | None:
        """The other loss in the latest step that had one, times the weight."""
        return None if self._loss is None else self.weight * self._loss

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the Trainer."""
        super().teardown(trainer, pl_module, stage)
        self._fitting, self._gradients, self._loss = None, {}, None


def gradients_of(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradient of a loss; of sharded parameters, this process's shard of its mean over all processes.

    Zeros for parameters that the loss does not depend on, so that all processes add up the same tensors.
    Sharded parameters must have no ``.grad`` before, as within :meth:`LossPull.apart`.
    """
    if group_of(parameters[:1]) is None:
        return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
    loss.backward()  # FSDP2 averages gradients in its hooks, which `autograd.grad` does not call
    return [torch.zeros_like(held(p)) if p.grad is None else held(p.grad) for p in parameters]
