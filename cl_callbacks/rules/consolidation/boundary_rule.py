"""The base class of rules that measure an importance at the end of each task, and merge it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from os import PathLike
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.anchoring import merge_each_, merge_latest_
from cl_callbacks.functional.normalization import sum_and_number
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import SHARE, Bounds
from cl_callbacks.guards.sound_state import FINITE
from cl_callbacks.rules.consolidation.anchored_rule import AnchoredRule
from cl_callbacks.rules.consolidation.importance_file import load_importance, save_importance
from cl_callbacks.rules.rule_options import AnchoredOptions, Anchors, Decay
from cl_callbacks.synapses.continuity import Continuity
from cl_callbacks.synapses.view import SynapseView


class BoundaryRule(AnchoredRule):
    """Base of the rules that override :meth:`estimate`, the importance for the task that ends.

    Args:
        strength: factor of the penalty, at least 0; 0 leaves training as it is, bit for bit.
        anchors: ``"latest"`` pulls to the weights after the latest task with the summed importance;
            ``"each"`` to the weights after each task with that task's.
        decay: share of the older tasks' importance that is kept at each boundary, 0 to 1; ``"mean"`` for
            the average over tasks instead of a sum.
        importance_file: written by :meth:`save_importance`, to start from another run's importance.
        options: of every rule that pulls: see
            :class:`~cl_callbacks.rules.consolidation.anchored_rule.AnchoredRule`.

    Raises:
        ValueError: an argument that cannot work, at construction.
    """

    shared: ClassVar[tuple[str, ...]] = ("importance", "anchor")
    """Fields that persist over tasks, and are therefore in an importance file."""
    saved: ClassVar[tuple[str, ...]] = ("offset",)
    state_bounds: Mapping[str, Bounds] = {**AnchoredRule.state_bounds, "offset": FINITE}

    @checked(decay=SHARE)
    def __init__(
        self,
        strength: float,
        *,
        anchors: Anchors = "latest",
        decay: Decay = 1.0,
        importance_file: str | PathLike[str] | None = None,
        **options: Unpack[AnchoredOptions],
    ) -> None:
        super().__init__(strength, **options)
        self.anchors, self.decay, self.importance_file = anchors, decay, importance_file
        self._ahead: dict[int, list[Tensor] | None] = {}  # importance of a task that is ending
        if importance_file is not None:
            state, self.tasks, self.offset = load_importance(
                importance_file, self.shared, self._kind_in_file, self.state_bounds
            )
            self.synapses.load_state_dict(state, str(importance_file))
            self._continuity = Continuity(restored=True)

    @property
    def kind(self) -> dict[str, str]:
        """Description of the importance measure; importance files of another measure are refused."""
        return {"rule": type(self).__name__}

    @property
    def _kind_in_file(self) -> dict[str, str]:
        # Files of 0.1, which do not say the unit, have that of normalize=None.
        return self.kind | {"normalize": self.normalize or "none"}

    @abstractmethod
    def estimate(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> list[Tensor] | None:
        """Importance of each synapse for the task that ends; ``None`` if nothing could be measured."""

    def consolidate(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> bool:
        """Measures the importance and merges it with that of the earlier tasks."""
        with torch.no_grad():
            ahead, self._ahead = self._ahead, {}
            measured = ahead[task] if task in ahead else self._measure(trainer, pl_module, synapses, task)
            if measured is None:
                return False
            self.commit()
            self.merge(synapses, measured)
        return True

    def measure_ahead(
        self, trainer: Trainer, pl_module: LightningModule, task: int
    ) -> dict[str, Tensor] | None:
        """Importance of each weight for the task that ends, by name, which :meth:`consolidate` then uses."""
        self._place(pl_module)
        view = self.synapses.view
        with torch.no_grad(), self.synapses.on_device():
            measured = self._measure(trainer, pl_module, view, task)
        self._ahead = {task: measured}
        return None if measured is None else dict(zip(view.names, measured, strict=True))

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Sets the state from a saved one; what was measured ahead is of another."""
        super().restore(state_dict)
        self._ahead = {}

    def _measure(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> list[Tensor] | None:
        """Importance in the unit of ``normalize``; ``None``, after a warning, if there is none."""
        measured = self.estimate(trainer, pl_module, synapses, task)
        if measured is None:
            rank_zero_warn(
                f"{type(self).__name__}: no sample of task {task} gave a finite importance, so the "
                f"task was not consolidated and the earlier state is kept."
            )
            return None
        unit = self.unit(synapses, sum_and_number(measured), f"task {task}")
        if unit is None:
            return None
        torch._foreach_div_(measured, unit)
        if self.max_importance is not None:
            torch._foreach_clamp_max_(measured, self.max_importance)
        return measured

    def merge(self, synapses: SynapseView, measured: list[Tensor]) -> None:
        """Adds the task's importance to the state, and moves the anchors."""
        importance, anchor = synapses["importance"], synapses["anchor"]
        new = [value.to(old.dtype) for value, old in zip(measured, importance, strict=True)]
        kept = self.decay
        if kept == "mean":
            kept = self.tasks / (self.tasks + 1)
            new = list(torch._foreach_mul(new, 1.0 - kept))
        if self.anchors == "latest":
            merge_latest_(importance, anchor, new, synapses.parameters, kept)
        else:
            growth = merge_each_(importance, anchor, new, synapses.parameters, kept)
            self.offset = kept * self.offset + synapses.total(growth).item()

    def save_importance(self, path: str | PathLike[str]) -> None:
        """Writes the state to a safetensors file, for ``importance_file=`` of another run.

        The file is written atomically; per parameter it has one tensor ``importance/NAME``, one
        ``anchor/NAME``, and for RWalk two more. It is valid only together with the weights on which it was
        measured. Under FSDP2 the state is sharded, and all processes have to call this.

        Raises:
            ValueError: no task has been consolidated yet.
        """
        if not self.tasks:
            raise ValueError("there is no importance to save before the first task has ended")
        state = self.synapses.state_dict()
        kept = {field: state[field] for field in self.shared}
        save_importance(path, kept, self._kind_in_file, self.tasks, self.offset)
