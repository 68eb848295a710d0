"""Consolidation with running averages, without task boundaries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.anchoring import add_quadratic_pull_
from cl_callbacks.functional.averaging import average_, average_square_, newest_share
from cl_callbacks.functional.normalization import sum_and_number
from cl_callbacks.functional.path_integral import add_path_, add_path_pull_, path_importance
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import POSITIVE, SHARE
from cl_callbacks.guards.sound_state import COUNT, OF_SQUARES, OF_WEIGHTS
from cl_callbacks.rules.consolidation.anchored_rule import AnchoredRule
from cl_callbacks.rules.rule_options import AnchoredOptions
from cl_callbacks.synapses.step import Need, Step
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors.devices import stacked

Measure = Literal["fisher", "sensitivity", "path"]


class StreamingConsolidation(AnchoredRule):
    r"""Consolidation with a running importance and a running anchor, which needs no task boundary.

    In every step each weight is pulled towards the running average of itself,

    .. math:: g \leftarrow g + \kappa\,\Omega\,(\theta - \bar\theta),

    in proportion to its importance. Averages are exponential and bias-corrected:

    =================  ================================================================  ===========
    ``measure``        :math:`\Omega`                                                    rule
    =================  ================================================================  ===========
    ``"fisher"``       average of :math:`g^2`                                            streaming EWC
    ``"sensitivity"``  average of :math:`|g|`                                            streaming MAS
    ``"path"``         :math:`\max(0, \omega) / ((\theta - \bar\theta)^2 + \xi)` with         streaming SI
                       :math:`\omega \leftarrow \beta\omega - g\,\delta\theta`
    =================  ================================================================  ===========

    The gradients are those of batches, so the first two measures fall with the batch size. An average
    extends over about :math:`1/(1-\beta)` steps; with :math:`\beta=1` it is the mean (for ``"path"`` the sum)
    of all steps, without decay. A long average is best for the importance, and for the anchor one over
    a part of a task. Memory is two tensors per parameter, and no data are read again.

    Sources: Elsayed & Mahmood 2024, baselines (arXiv 2404.00781), whose released path forms differ from
    their equations: here it is synaptic intelligence, with a path that may fade.

    Args:
        strength: :math:`\kappa`, at least 0; 0 leaves training as it is, bit for bit.
        measure: the measure of importance, as above; on the permuted digits ``"path"`` is the best by far.
        importance_decay: :math:`\beta` of the importance, from 0 to 1.
        anchor_decay: :math:`\beta` of the anchor :math:`\bar\theta`, likewise.
        damping: :math:`\xi` of ``"path"``, in units of squared weights, above 0.
        options: ``parameters``, ``exclude``, ``proximal`` and others of every rule that pulls: see
            :class:`~cl_callbacks.rules.consolidation.anchored_rule.AnchoredRule`.

    Raises:
        ValueError: an argument that cannot work, at construction.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[StreamingConsolidation()], logger=False, enable_checkpointing=False)
    """

    follows: ClassVar[tuple[str, ...]] = ("anchor",)
    running = ("importance", "anchor")
    local: ClassVar[bool] = True
    saved: ClassVar[tuple[str, ...]] = ("steps", "unit_of_importance", "unit_step")
    unsaved_before: ClassVar[Mapping[str, Any]] = {
        **AnchoredRule.unsaved_before,
        "unit_of_importance": 1.0,
        "unit_step": 0,
    }

    @checked(importance_decay=SHARE, anchor_decay=SHARE, damping=POSITIVE)
    def __init__(
        self,
        strength: float = 0.05,
        *,
        measure: Measure = "path",
        importance_decay: float = 1.0,
        anchor_decay: float = 0.995,
        damping: float = 1e-3,
        **options: Unpack[AnchoredOptions],
    ) -> None:
        super().__init__(strength, **options)
        self.measure, self.damping = measure, damping
        path = {"synapses/importance": OF_WEIGHTS} if measure == "path" else {}  # may be below 0
        self.state_bounds = {
            **self.state_bounds,
            **path,
            "steps": COUNT,
            "unit_step": COUNT,
            "unit_of_importance": OF_WEIGHTS if measure == "path" else OF_SQUARES,
        }
        self.importance_decay, self.anchor_decay = importance_decay, anchor_decay
        self.needs: frozenset[Need] = frozenset(
            {"gradients", "updates"} if measure == "path" else {"gradients"}
        )
        self.steps: dict[str, int] = {}
        """Number of optimizer steps of each parameter, by name, for the bias correction of averages."""
        self.unit_of_importance = 0.0 if self.normalize else 1.0
        """Running importance that counts as 1: with ``normalize`` its mean over all synapses, else 1. It is 0
        until the first step."""
        self.unit_step = 0
        """Step at which that was measured last."""

    @property
    def remembers(self) -> bool:
        """Whether there is an importance: from the second step on."""
        return bool(self.steps) and self.unit_of_importance > 0

    def effective_importance(self, synapses: SynapseView) -> list[Tensor]:
        r"""Importance :math:`\Omega` as the pull uses it."""
        # In the first step the unit is not known yet, and nothing has any importance.
        found = torch._foreach_div(self._importance(synapses), self.unit_of_importance or math.inf)
        if self.max_importance is not None:
            torch._foreach_clamp_max_(found, self.max_importance)
        return list(found)

    def _importance(self, synapses: SynapseView) -> list[Tensor]:
        found = synapses["importance"]
        if self.measure == "path":
            found = path_importance(found, synapses.parameters, synapses["anchor"], self.damping)
        return found

    def pull(self, synapses: SynapseView, gradients: list[Tensor]) -> None:
        """Adds the gradient of the penalty."""
        if self.proximal or not self.anchored:
            return
        # The unit goes into two numbers here, and not into a copy of the importance.
        running, anchor, unit = synapses["importance"], synapses["anchor"], self.unit_of_importance
        limits = self.max_importance, self.largest_importance(synapses)
        limit = min((limit * unit for limit in limits if limit is not None), default=None)
        stiffness = self.stiffness / unit
        if self.measure == "path":
            add_path_pull_(gradients, synapses.parameters, running, anchor, stiffness, self.damping, limit)
        else:
            add_quadratic_pull_(gradients, synapses.parameters, running, anchor, stiffness, limit)

    def observe(self, step: Step) -> None:
        """Adds the step to the running averages."""
        synapses, running = step.synapses, step.synapses["importance"]
        if self.measure == "fisher":
            average_square_(running, step.gradients, self._shares(synapses.names, self.importance_decay))
        elif self.measure == "sensitivity":
            sizes = torch._foreach_abs(step.gradients)
            average_(running, sizes, self._shares(synapses.names, self.importance_decay))
        else:
            add_path_(running, step.gradients, step.updates, self.importance_decay)
        average_(synapses["anchor"], synapses.parameters, self._shares(synapses.names, self.anchor_decay))

    def end_step(self, synapses: SynapseView) -> None:
        """Counts the step of each parameter."""
        self.steps.update((name, self.steps.get(name, 0) + 1) for name in synapses.names)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Measures the unit of importance, ever more rarely, after all optimizers have stepped."""
        steps = max(self.steps.values(), default=0)
        if self.normalize and steps >= self.unit_step + min(1 + self.unit_step // 10, 1000):
            # A mean over all steps changes by a tenth in so many, and reading it waits for the device.
            mean, self.unit_step = self._mean_importance(), steps
            if math.isfinite(mean):  # as it is unless weights are not
                self.unit_of_importance = mean
        super().on_train_batch_end(trainer, *args)

    def _mean_importance(self) -> float:
        view = self.synapses.view
        with self.synapses.on_device(changing=False):
            parts = [sum_and_number(self._importance(block)) for block in view.blocks()]
        total, number = view.total(stacked(parts).sum(0)).tolist()
        return total / number

    def _shares(self, names: list[str], decay: float) -> list[float]:
        return [newest_share(decay, self.steps.get(name, 0) + 1) for name in names]
