"""Synaptic intelligence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import AdamW, Optimizer
from typing_extensions import Unpack

from cl_callbacks.functional.path_integral import add_path_, path_importance, without_decay
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import POSITIVE
from cl_callbacks.rules.consolidation.boundary_rule import BoundaryRule
from cl_callbacks.rules.rule_options import BoundaryOptions, Decay
from cl_callbacks.synapses.state import Fill
from cl_callbacks.synapses.step import Need, Step
from cl_callbacks.synapses.view import SynapseView


class SynapticIntelligence(BoundaryRule):
    r"""Synaptic intelligence: weights that made the loss fall resist change.

    Every synapse accumulates its contribution to the fall of the loss during training, without an extra pass
    over the data, and from the second task on every step adds the gradient of a penalty to that
    of the loss:

    .. math:: c \sum_i \Omega_i (\theta_i - \theta^*_i)^2, \qquad
              \Omega_i = \sum_{\text{tasks}} \frac{\max(0, \omega_i)}{(\Delta\theta_i)^2 + \xi}, \qquad
              \omega_i = -\sum_{\text{steps}} g_i \, \delta\theta_i .

    Here :math:`g` is the gradient of the task's loss alone and :math:`\delta\theta` the realised update, so
    it is valid with momentum, Adam, clipping, accumulation and mixed precision; :math:`\Delta\theta` is the
    change of the weights from the task's start to its end. Memory is three tensors per
    parameter and two snapshots that all rules of a Trainer share. Large batches weaken it, since part of
    the path integral comes from the noise of the gradient.

    Source: Zenke et al. 2017 (arXiv 1703.04200).

    Args:
        strength: :math:`c`, at least 0; 0 leaves training as it is, bit for bit. The penalty has no factor
            of one half: the gradient is :math:`2c\,\Omega(\theta-\theta^*)`.
        damping: :math:`\xi`, in units of squared weights, above 0.
        exclude_weight_decay: leave decoupled weight decay, such as AdamW's, out of the path, since it moves
            weights whatever the loss.
        decay: share of the older tasks' importance that is kept at each boundary, 0 to 1; ``"mean"`` for
            the average over tasks instead of a sum.
        options: ``parameters``, ``exclude``, ``proximal`` and others of every rule that pulls: see
            :class:`~cl_callbacks.rules.consolidation.boundary_rule.BoundaryRule`.

    Raises:
        ValueError: an argument that cannot work, at construction.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[SynapticIntelligence()], logger=False, enable_checkpointing=False)
    """

    fields: Mapping[str, Fill] = {**BoundaryRule.fields, "path": "zeros"}
    accumulated: ClassVar[tuple[str, ...]] = ("path",)
    follows: ClassVar[tuple[str, ...]] = ("anchor",)
    running = ("path",)
    needs: frozenset[Need] = frozenset({"gradients", "updates"})
    local: ClassVar[bool] = True
    stiffness_of_one: ClassVar[float] = 2.0

    @checked(damping=POSITIVE)
    def __init__(
        self,
        strength: float = 0.01,
        *,
        damping: float = 0.1,
        exclude_weight_decay: bool = False,
        decay: Decay = 1.0,
        **options: Unpack[BoundaryOptions],
    ) -> None:
        self.damping, self.exclude_weight_decay = damping, exclude_weight_decay
        super().__init__(strength, decay=decay, **options)
        if self.anchors == "each":
            raise ValueError(
                f"{type(self).__name__} measures the way of each task from its anchor, which has to be "
                f"the weights after the task before: leave anchors='latest'"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises an error if a weight decay is to be excluded that is not decoupled from the gradient."""
        super().on_train_start(trainer, pl_module)
        if self.exclude_weight_decay:
            for optimizer in trainer.optimizers:
                _refuse_coupled_decay(optimizer)

    def observe(self, step: Step) -> None:
        """Adds one step to the path integral."""
        updates = step.updates
        if self.exclude_weight_decay:
            decays = step.option("weight_decay", default=0.0)
            rates = [lr * w for lr, w in zip(step.option("lr"), decays, strict=True)]
            updates = without_decay(updates, step.synapses.parameters, rates)
        add_path_(step.synapses["path"], step.gradients, updates)

    def estimate(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> list[Tensor]:
        """Importance from the path integral of this task, which is then reset to 0."""
        self.commit()  # the state is changed while it is read
        path = synapses["path"]
        found = path_importance(path, synapses.parameters, synapses["anchor"], self.damping)
        torch._foreach_zero_(path)
        return found


def _refuse_coupled_decay(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        decoupled = isinstance(optimizer, AdamW) or group.get("decoupled_weight_decay", False)
        if group.get("weight_decay", 0.0) and not decoupled:
            raise MisconfigurationException(
                f"exclude_weight_decay=True takes decoupled decay, as AdamW's, out of the update, and that "
                f"of {type(optimizer).__name__} is not known to be decoupled: use AdamW, set "
                f"weight_decay=0, or exclude_weight_decay=False."
            )
