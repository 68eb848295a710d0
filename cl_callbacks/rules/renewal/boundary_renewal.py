"""The base class of rules that change the weights before a new task."""

from __future__ import annotations

from typing import ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from typing_extensions import Unpack

from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.uninterrupted import uninterrupted
from cl_callbacks.rules.moved_weights import have_others_follow, refuse_certain_values
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.synapses.view import SynapseView


class BoundaryRenewal(SynapticCallback):
    """Base of the rules that make weights plastic again when a task has ended.

    They do so when the next one begins: what is measured, scored and saved at the end of a task is of the
    weights that have learned it, and the last task ends with these.

    Args:
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`.
    """

    shardable: ClassVar[bool] = True
    holds_weights: ClassVar[bool] = False
    renews: ClassVar[bool] = True
    saved: ClassVar[tuple[str, ...]] = ("due",)

    @checked()
    def __init__(self, **options: Unpack[RuleOptions]) -> None:
        super().__init__(**options)
        self.due = False
        """Whether a task has ended, and the weights were not renewed since."""

    @property
    def renews_at_boundaries(self) -> bool:
        """Whether the arguments are such that :meth:`renew` changes anything."""
        return True

    @property
    def has_memory(self) -> bool:
        """Whether a task has ended, after which weights are renewed."""
        return self.tasks > 0

    def renew(self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView) -> None:
        """Changes the weights in place, before a new task; the same on all processes."""
        raise NotImplementedError

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a rule beside it whose weights may have only certain values."""
        super().on_train_start(trainer, pl_module)
        refuse_certain_values(self, trainer)

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Renews the weights, if a task has ended before, and tells other rules by how much they moved."""
        super().on_task_start(trainer, pl_module, task)
        if self.due and self.renews_at_boundaries:
            self._place(pl_module)
            with torch.no_grad(), uninterrupted():  # or some weights would be renewed a second time
                self._renew_all(trainer, pl_module, self.synapses.view)
        self.due = False

    def _renew_all(self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView) -> None:
        before = [p.clone() for p in synapses.parameters]
        self.renew(trainer, pl_module, synapses)
        moved = torch._foreach_sub(synapses.parameters, before)
        have_others_follow(self, trainer, dict(zip(synapses.sources, moved, strict=True)))
        self.due = False

    def consolidate(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> bool:
        """Notes that a task has ended."""
        self.due = True
        return True
