"""Decay to earlier weights in place of 0."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.guards.arguments import checked
from cl_callbacks.rules.consolidation.anchored_rule import AnchoredRule
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.synapses.trained_weights import trained
from cl_callbacks.synapses.view import SynapseView

Start = Literal["last_task", "start"]


class L2SP(AnchoredRule):
    r"""L2-SP: every weight is pulled to where it started, or to where the last task left it, all alike.

    Every step adds the gradient of a penalty to that of the loss:

    .. math:: \frac\lambda2 \sum_i (\theta_i - \theta^*_i)^2 .

    It is :class:`EWC` with an importance of 1, which it needs no data for: what is left of EWC without the
    Fisher information. Memory is two tensors per parameter.

    A weight that no task has trained yet has nothing to be pulled to and is left alone, such as that of a new
    head: with ``to="last_task"`` until a task has trained it, with ``to="start"`` if it was not there at the
    start. A head that was there at the start with random weights is pulled to them: leave it out with
    ``exclude``, as in the paper, where heads get an ordinary decay.

    Source: Li et al. 2018 (arXiv 1802.01483), with :math:`\theta^*` the pretrained weights.

    Args:
        strength: :math:`\lambda`, at least 0, in units of the loss per squared weight; 0 leaves training as
            it is, bit for bit.
        to: ``"last_task"`` pulls to the weights at the last boundary, from the second task on; ``"start"`` to
            those before the first task, and from then on: for pretrained networks.
        proximal: apply the penalty after each optimizer step instead of adding its gradient: see
            :class:`~cl_callbacks.rules.consolidation.anchored_rule.AnchoredRule`.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`.

    Raises:
        ValueError: an argument that cannot work, at construction.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[L2SP()], logger=False, enable_checkpointing=False)
    """

    saved: ClassVar[tuple[str, ...]] = ("started",)
    running: tuple[str, ...] = ("anchor",)  # compared with weights, and so not rounded more than they are
    local: ClassVar[bool] = True

    @checked()
    def __init__(
        self,
        strength: float = 0.05,
        *,
        to: Start = "last_task",
        proximal: bool = False,
        **options: Unpack[RuleOptions],
    ) -> None:
        super().__init__(strength, proximal=proximal, **options)
        self.to = to
        self.started = False
        """Whether the weights before the first task are the anchor."""

    @property
    def remembers(self) -> bool:
        """Whether there is anything to be pulled to."""
        return self.started or super().remembers

    @property
    def waits_for_a_task(self) -> bool:
        """Whether there is nothing to be pulled to before a task has ended, and none has."""
        return self.to == "last_task" and super().waits_for_a_task

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to pull to the weights before the first task, if they are the anchor."""
        super().on_train_start(trainer, pl_module)
        if self.to == "start" and not self.started:
            with self.synapses.on_device():
                torch._foreach_add_(self.synapses.view["importance"], 1.0)
            self.started = True

    def consolidate(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> bool:
        """Makes the weights that a task has trained the anchor, unless that is the start."""
        if self.to == "last_task":
            importance, anchor = synapses["importance"], synapses["anchor"]
            with torch.no_grad():
                new: list[Tensor] = trained(synapses, anchor, trainer.optimizers)
                self.commit()
                for known, more in zip(importance, new, strict=True):
                    torch.maximum(known, more.to(known.dtype), out=known)
                torch._foreach_copy_(anchor, synapses.parameters)
        return True
