"""What the importance family shares: a quadratic pull towards an anchor, and its bookkeeping."""

from __future__ import annotations

import math
from abc import abstractmethod
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cl_callbacks.functional.anchoring import (
    add_quadratic_pull_,
    merge_each_,
    merge_latest_,
    quadratic_penalty,
)
from cl_callbacks.synapses import Fill, SynapseView
from cl_callbacks.synaptic_callback import Patterns, SynapticCallback

Anchors = Literal["latest", "each"]


class AnchoredRule(SynapticCallback):
    r"""Base of the rules that pull each weight towards where it was important.

    The penalty is :math:`\frac k2\sum_i\Omega_i(\theta_i-\theta^*_i)^2` with the rule's stiffness
    :math:`k`. Its gradient is added to the task's before clipping, in every optimizer step. A rule
    overrides :meth:`estimate`, which measures the importance :math:`\Omega` at the end of a task.

    See the arguments of :class:`~cl_callbacks.consolidation.ewc.EWC`.
    """

    fields: ClassVar[dict[str, Fill]] = {"importance": "zeros", "anchor": "parameter"}

    def __init__(
        self,
        strength: float,
        *,
        anchors: Anchors,
        decay: float,
        importance: str | PathLike[str] | None,
        parameters: Patterns,
        exclude: Patterns,
        state_dtype: torch.dtype | str | None,
        strict: bool,
        name: str | None,
    ) -> None:
        super().__init__(
            parameters=parameters,
            exclude=exclude,
            state_dtype=state_dtype,
            strict=strict,
            name=name,
        )
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(f"strength must be a finite number, at least 0; got {strength}")
        if anchors not in get_args(Anchors):
            raise ValueError(f"anchors={anchors!r} is not one of {get_args(Anchors)}")
        if not 0 <= decay <= 1:
            raise ValueError(f"decay is the share of old importance that is kept, 0 to 1; got {decay}")
        self.strength, self.anchors, self.decay = strength, anchors, decay
        self._offset = 0.0  # the part of the penalty that no weight can change
        if importance is not None:
            self._load_importance(Path(importance))

    @property
    def measure(self) -> dict[str, str]:
        """What the importance is, in words; importances of different measures do not mix."""
        return {"rule": type(self).__name__}

    @property
    def stiffness(self) -> float:
        """:math:`k`: the pull on a weight of importance 1 at distance 1 from its anchor."""
        return self.strength

    @abstractmethod
    def estimate(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> tuple[list[Tensor], int] | None:
        """Importance of each synapse for the task that ends, and from how many samples.

        Returns:
            Tensors aligned with ``synapses.parameters``; ``None`` if nothing could be measured.
        """

    def pull(self, synapses: SynapseView, gradients: list[Tensor]) -> None:
        """Adds the gradient of the penalty, from the second task on."""
        if self.tasks and self.stiffness:
            add_quadratic_pull_(
                gradients,
                synapses.parameters,
                synapses["importance"],
                synapses["anchor"],
                self.stiffness,
            )

    def penalty(self, synapses: SynapseView) -> Tensor:
        """The penalty, a scalar."""
        with torch.no_grad():
            return quadratic_penalty(
                synapses.parameters,
                synapses["importance"],
                synapses["anchor"],
                self.stiffness,
                self._offset,
            )

    def consolidate(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> bool:
        """Measures the importance and merges it with that of the earlier tasks."""
        measured = self.estimate(trainer, pl_module, synapses, task)
        if measured is None:
            rank_zero_warn(
                f"{type(self).__name__}: no sample of task {task} gave a finite importance, so the task "
                f"was not consolidated and the earlier state is kept."
            )
            return False
        new, samples = measured
        state = synapses["importance"], synapses["anchor"]
        new = [value.to(old.dtype) for value, old in zip(new, state[0], strict=True)]
        with torch.no_grad():
            if self.anchors == "latest":
                merge_latest_(*state, new, synapses.parameters, self.decay)
            else:
                growth = merge_each_(*state, new, synapses.parameters, self.decay)
                self._offset = self.decay * self._offset + growth.item()
        rank_zero_info(f"{type(self).__name__}: task {task} consolidated from {samples} samples")
        return True

    def state_dict(self) -> dict[str, Any]:
        """Importance, anchor and counts."""
        return super().state_dict() | {"offset": self._offset}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until the model is there."""
        super().load_state_dict(state_dict)
        if not self._evaluating:
            self._offset = state_dict["offset"]

    def save_importance(self, path: str | PathLike[str]) -> None:
        """Writes importance and anchor to a safetensors file, for ``importance=`` of another run.

        Args:
            path: of the file; one tensor ``importance/NAME`` and one ``anchor/NAME`` per parameter.

        Raises:
            ValueError: no task has been consolidated yet.
        """
        if not self.tasks:
            raise ValueError("there is no importance to save before the first task has ended")
        tensors = {
            f"{field}/{name}": t.contiguous().cpu()
            for field, state in self.synapses.state_dict().items()
            for name, t in state.items()
        }
        save_file(tensors, path, self.measure | {"tasks": str(self.tasks), "offset": repr(self._offset)})

    def _load_importance(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"importance={str(path)!r} is not a file; write one with `save_importance`")
        state: dict[str, dict[str, Tensor]] = {field: {} for field in self.fields}
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118  (not a dict)
                field, _, name = key.partition("/")
                if field not in state:
                    raise ValueError(f"{path} holds {key!r}, and an importance file has only {list(state)}")
                state[field][name] = file.get_tensor(key)
        found = {key: about.get(key, "none") for key in self.measure}
        if found != self.measure:
            raise ValueError(
                f"{path} holds the importance {found}, and this rule measures {self.measure}: their "
                f"sizes differ by orders of magnitude, so they do not add up"
            )
        self.synapses.load_state_dict(state)
        self.tasks, self._offset = int(about["tasks"]), float(about["offset"])
