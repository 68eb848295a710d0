"""Consolidation with running averages, without task boundaries."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.averaging import average_, average_square_, newest_share
from cl_callbacks.functional.path_integral import add_path_, add_path_pull_, path_importance
from cl_callbacks.rules.consolidation.anchored_rule import AnchoredRule
from cl_callbacks.rules.rule_options import AnchoredOptions
from cl_callbacks.synapses.step import Need, Step
from cl_callbacks.synapses.view import SynapseView

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
        >>> trainer = Trainer(
        ...     callbacks=[StreamingConsolidation(strength=1.0)], logger=False, enable_checkpointing=False)
    """

    running = ("importance", "anchor")
    local: ClassVar[bool] = True
    saved: ClassVar[tuple[str, ...]] = ("steps",)

    def __init__(
        self,
        strength: float,
        *,
        measure: Measure = "path",
        importance_decay: float = 1.0,
        anchor_decay: float = 0.995,
        damping: float = 1e-3,
        **options: Unpack[AnchoredOptions],
    ) -> None:
        super().__init__(strength, **options)
        if measure not in get_args(Measure):
            raise ValueError(f"measure={measure!r} is not one of {get_args(Measure)}")
        for decay in (importance_decay, anchor_decay):
            if not 0 <= decay <= 1:
                raise ValueError(f"a decay is the share that each step keeps, 0 to 1; got {decay}")
        if not damping > 0:
            raise ValueError(f"damping must be positive, or a weight that rests divides by 0; got {damping}")
        self.measure, self.damping = measure, damping
        self.importance_decay, self.anchor_decay = importance_decay, anchor_decay
        self.needs: frozenset[Need] = frozenset(
            {"gradients", "updates"} if measure == "path" else {"gradients"}
        )
        self.steps: dict[str, int] = {}
        """Number of optimizer steps of each parameter, by name, for the bias correction of averages."""

    @property
    def remembers(self) -> bool:
        """Whether a step has been taken: there is an importance from the second step on."""
        return bool(self.steps)

    def effective_importance(self, synapses: SynapseView) -> list[Tensor]:
        r"""Importance :math:`\Omega` as the pull uses it."""
        found = synapses["importance"]
        if self.measure == "path":
            found = path_importance(found, synapses.parameters, synapses["anchor"], self.damping)
        if self.max_importance is not None:
            found = list(torch._foreach_clamp_max(found, self.max_importance))
        return found

    def pull(self, synapses: SynapseView, gradients: list[Tensor]) -> None:
        """Adds the gradient of the penalty."""
        if self.measure != "path" or self.proximal or not self.anchored:
            super().pull(synapses, gradients)
            return
        path, anchor, limit = synapses["importance"], synapses["anchor"], self.max_importance
        add_path_pull_(gradients, synapses.parameters, path, anchor, self.stiffness, self.damping, limit)

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

    def _shares(self, names: list[str], decay: float) -> list[float]:
        return [newest_share(decay, self.steps.get(name, 0) + 1) for name in names]
